"""`octavo chat`: a conversation in the terminal, or through pipes, one line a turn.

Knows the terminal and the history of the conversation; `conversation` knows where answers come
from. Ctrl-C stops an answer; at the prompt it leaves, as Ctrl-D does.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from octavo.cli.engine_flags import (
    POOLING_FLAGS,
    add_engine_flags,
    engine_config,
    engine_options,
    has_engine_flags,
)
from octavo.config import default_api_keys, default_home
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from octavo.cli.conversation import Message, Partner, Server, Stats

DEFAULT_MAX_TOKENS = 1024
_HISTORY_LINES = 1000
_EXAMPLES = """\
examples:
  octavo chat                                 with the server on http://127.0.0.1:8000/v1
  octavo chat smollm2                         with that server, or in process when there is none
  octavo chat --url https://host/v1 --api-key KEY --system "Answer in one sentence."
  echo "What is a sextant?" | octavo chat smollm2
"""
_HELP = """\
/help           this text
/reset          forget the conversation; the system prompt stays
/system TEXT    set the system prompt; without TEXT, show it
/regenerate     answer the last question anew
/stats          figures of the last answer
/save FILE      write the conversation as JSON messages
/exit           leave, as Ctrl-D does
Ctrl-C stops an answer. A line that should begin with a slash: put a space before it.
"""
COMMANDS = ("/help", "/reset", "/system", "/regenerate", "/stats", "/save", "/exit")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `chat` to the command line."""
    parser = subparsers.add_parser(
        "chat",
        help="chat in the terminal",
        description="Chat in the terminal with a running server, or with a model in this process.",
        epilog=_EXAMPLES + "\ncommands while chatting:\n" + _HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="a model that the server serves, or one to load when no server answers (default: the "
        "first that the server lists)",
    )
    parser.add_argument(
        "--url", help="the server (default: http://127.0.0.1:8000/v1 if one answers there)"
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help="sent to the server (default: $OCTAVO_API_KEY)"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 takes the most probable token (default: the model's or server's own)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=DEFAULT_MAX_TOKENS,
        metavar="N",
        help=f"most tokens of an answer (default: {DEFAULT_MAX_TOKENS})",
    )
    add_engine_flags(parser, skip=POOLING_FLAGS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Chat until the user leaves; 1 when a turn failed and nobody was there to see it."""
    partner = find_partner(args)
    try:
        is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        options = {"temperature": args.temperature, "max_tokens": args.max_tokens}
        chat = Chat(
            partner,
            system=args.system,
            options={name: value for name, value in options.items() if value is not None},
            out=sys.stdout,
            is_terminal=is_terminal,
        )
        if not is_terminal:
            return chat.loop(_line_from_stdin)
        print(f"{partner.title}. /help lists commands, Ctrl-D leaves.")
        with _line_editing():
            return chat.loop(lambda: input(">>> "))
    finally:
        partner.close()


def find_partner(args: argparse.Namespace) -> Partner:
    """The server at `--url` when one answers, else the model in this process.

    A flag of the engine means that the model is to be loaded here, whatever server runs.

    Raises:
        OctavoError: neither, or the server does not serve the model that was named.
    """
    from octavo.bench.client import api_base
    from octavo.cli.conversation import DEFAULT_URL, Server

    if has_engine_flags(args):
        if args.model is None or args.url is not None:
            raise ConfigError(
                "the engine's flags are for a MODEL in this process, not for a server"
            )
        return _load(args)
    url = api_base(args.url or DEFAULT_URL)
    server = Server(url, api_key=args.api_key or next(iter(default_api_keys()), None))
    is_chosen = False
    try:
        is_chosen = _choose(server, args, url)
    finally:
        if not is_chosen:
            server.close()
    if is_chosen:
        return server
    if args.model is None:
        raise ConfigError(
            f"no server answers at {url}; start one with `octavo serve MODEL`, or name a model to "
            "load here: `octavo chat MODEL`"
        )
    return _load(args)


def _choose(server: Server, args: argparse.Namespace, url: str) -> bool:
    """Whether the server is the one to talk to; then its model is chosen."""
    from octavo.cli.conversation import NotAServerError

    try:
        models = server.models()
    except NotAServerError:
        if args.url is not None or args.model is None:
            raise
        return False
    if models is None:
        if args.url is not None:
            raise ConfigError(f"no server answers at {url}")
        return False
    if args.model is not None and args.model not in models:
        if args.url is not None:
            raise ConfigError(f"{url} does not serve {args.model}; it serves {', '.join(models)}")
        return False
    if not models:
        raise ConfigError(f"{url} serves no model")
    server.choose(args.model or models[0])
    return True


def _load(args: argparse.Namespace) -> Partner:
    config = engine_config(args)
    print(f"loading {args.model} ...", file=sys.stderr)
    from octavo.cli.conversation import InProcess
    from octavo.llm import LLM

    llm = LLM(config.model, **engine_options(args))
    return InProcess(llm, args.model, llm.sampling_params)


class Chat:
    """A conversation, and the commands on it.

    Args:
        partner: who answers.
        system: system prompt, or None.
        options: sampling options that were given.
        out: where answers go.
        is_terminal: somebody watches: say more, and mark reasoning.
    """

    def __init__(
        self,
        partner: Partner,
        *,
        system: str | None,
        options: dict[str, Any],
        out: TextIO,
        is_terminal: bool,
    ) -> None:
        self._partner = partner
        self._system = system
        self._options = options
        self._out = out
        self._is_terminal = is_terminal
        self._turns: list[Message] = []
        self._stats: Stats | None = None
        self._num_failed = 0

    @property
    def messages(self) -> list[Message]:
        """The conversation as it would be sent now."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._turns]

    def loop(self, read: Callable[[], str]) -> int:
        """Take turns until `read` raises `EOFError` or the user leaves; the exit code."""
        while True:
            try:
                line = read()
            except (EOFError, KeyboardInterrupt) as end:
                if self._is_terminal:
                    self._say("")
                elif isinstance(end, KeyboardInterrupt):
                    raise
                break
            if not line.strip():
                continue
            if line.startswith("/"):
                if not self._command(line.strip()):
                    break
            else:
                self._turns.append({"role": "user", "content": line.strip()})
                self._answer()
        return 1 if self._num_failed and not self._is_terminal else 0

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)

    def _answer(self) -> None:
        """Answer the last turn, which is the user's. An answer that came to nothing undoes it."""
        from octavo.cli.conversation import Stats

        stats = Stats()
        pieces = self._partner.answer(self.messages, self._options, stats)
        text = ""
        note = ""
        is_dim = False
        try:
            for piece in pieces:
                if piece.is_reasoning and not self._is_terminal:
                    continue
                if piece.is_reasoning != is_dim:
                    is_dim = piece.is_reasoning
                    self._out.write("\x1b[2m" if is_dim else "\x1b[0m\n\n")
                if not piece.is_reasoning:
                    text += piece.text
                self._out.write(piece.text)
                self._out.flush()
        except KeyboardInterrupt:
            note = "stopped"
        except OctavoError as error:
            self._num_failed += 1
            note = f"error: {' '.join(str(error).split())}"
        finally:
            pieces.close()
            if is_dim:
                self._out.write("\x1b[0m")
        self._stats = stats
        if stats.finish_reason == "length":
            note = "the answer was cut: --max-tokens or the context is full"
        if text or not note:
            self._say("")
        if note:
            print(f"({note})", file=self._out if self._is_terminal else sys.stderr, flush=True)
        if text:
            self._turns.append({"role": "assistant", "content": text})
        else:
            self._turns.pop()

    def _command(self, line: str) -> bool:
        """Do one command; False when the user leaves."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/exit" | "/quit" | "/bye":
                return False
            case "/help":
                self._say(_HELP.rstrip())
            case "/reset":
                self._turns.clear()
                self._stats = None
                self._say("(the conversation is forgotten)")
            case "/system" if rest:
                self._system = rest
            case "/system":
                self._say(self._system or "(no system prompt)")
            case "/regenerate":
                self._regenerate()
            case "/stats":
                self._say(str(self._stats) if self._stats else "(no answer yet)")
            case "/save":
                self._save(rest)
            case _:
                close = difflib.get_close_matches(name, COMMANDS, n=1)
                hint = f"did you mean {close[0]}?" if close else "/help lists them"
                self._say(f"(there is no command {name}; {hint})")
        return True

    def _regenerate(self) -> None:
        if self._turns and self._turns[-1]["role"] == "assistant":
            self._turns.pop()
        if self._turns:
            self._answer()
        else:
            self._say("(no question yet)")

    def _save(self, name: str) -> None:
        if not name:
            self._say("(give a file: /save FILE)")
            return
        from pathlib import Path

        import msgspec

        path = Path(name).expanduser()
        try:
            with path.open("xb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(self.messages)) + b"\n")
        except FileExistsError:
            self._say(f"({path} exists already; choose another name)")
        except OSError as error:
            self._say(f"(cannot write {path}: {error.strerror})")
        else:
            self._say(f"(saved to {path})")


def _line_from_stdin() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextmanager
def _line_editing() -> Iterator[None]:
    """Editing, and a history of lines that outlives the program, where Python has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = default_home() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # it holds what was asked
        readline.read_history_file(path)
    except OSError:
        pass  # no history is no reason not to chat
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(path)
