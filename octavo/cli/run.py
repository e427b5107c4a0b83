"""`octavo run`: one answer from a model in this process, streamed to standard output."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from octavo.cli.engine_flags import POOLING_FLAGS, add_engine_flags, engine_config, engine_options
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.cli.conversation import Message, Stats
    from octavo.llm import LLM
    from octavo.types import Delta

DEFAULT_MAX_TOKENS = 1024
_EXAMPLES = """\
examples:
  octavo run smollm2 "Why is the sky blue?"
  git diff | octavo run smollm2 --system "Write a commit message." --temperature 0
  octavo run ./base-model --raw --max-tokens 50 "Once upon a time"
  octavo run smollm2 --json "Name three rivers." | jq .usage
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run` to the command line."""
    parser = subparsers.add_parser(
        "run",
        help="answer one prompt in this process",
        description="Load a model in this process and answer one prompt.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a pulled name, a folder or a GGUF file")
    parser.add_argument(
        "prompt", metavar="PROMPT", nargs="?", help="the prompt; - or nothing reads it from stdin"
    )
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without a chat template"
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=DEFAULT_MAX_TOKENS,
        metavar="N",
        help=f"most tokens to generate (default: {DEFAULT_MAX_TOKENS})",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 takes the most probable token (default: the model's own)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample from the fewest tokens whose probability reaches P (default: the model's own)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="same seed, same answer (default: drawn)"
    )
    parser.add_argument("--stats", action="store_true", help="print times and rates to stderr")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object when the answer is complete"
    )
    add_engine_flags(parser, skip=("seed", *POOLING_FLAGS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer one prompt; the exit code."""
    prompt = _prompt(args.prompt)
    if args.raw and args.system is not None:
        raise ConfigError("--raw takes no --system: there is no chat template to put it into")
    config = engine_config(args)
    begin = time.perf_counter()
    from octavo.llm import LLM

    imported = time.perf_counter()
    llm = LLM(config.model, **_engine_options(args))
    loaded = time.perf_counter()
    times = {"import_s": imported - begin, "load_s": loaded - imported}
    try:
        text, stats = _answer(llm, args, prompt)
    finally:
        llm.close()
    if args.json:
        _print_json(args.model, text, stats, times)
    if args.stats:
        print(f"imports {times['import_s']:.2f} s, load {times['load_s']:.2f} s", file=sys.stderr)
        print(stats, file=sys.stderr)
    return 0


def _prompt(given: str | None) -> str:
    """The prompt, from the command line or standard input.

    Raises:
        ConfigError: there is none.
    """
    if given is not None and given != "-":
        prompt = given
    elif given is None and sys.stdin.isatty():
        raise ConfigError('give a prompt: octavo run MODEL "prompt", or - to type it')
    else:
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ConfigError("the prompt is empty")
    return prompt


def _engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The engine's options; `--seed` is the request's here, not the engine's."""
    options = engine_options(args)
    del options["seed"]
    return options


def _answer(llm: LLM, args: argparse.Namespace, prompt: str) -> tuple[str, Stats]:
    from octavo.cli.conversation import Stats, deferred_interrupt, record

    names = ("max_tokens", "temperature", "top_p", "seed")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    params = llm.sampling_params(given)
    stats = Stats()
    deltas: Iterator[Delta]
    if args.raw or not llm.has_chat_template:
        if args.system is not None:
            raise ConfigError(f"{args.model} has no chat template to put --system into")
        deltas = llm.stream(prompt, params)
    else:
        system: list[Message] = []
        if args.system is not None:
            system.append({"role": "system", "content": args.system})
        deltas = llm.stream_chat([*system, {"role": "user", "content": prompt}], params)
    text = ""
    with deferred_interrupt() as is_interrupted:
        for delta in deltas:
            record(delta, stats)
            text += delta.text
            if not args.json:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
            if is_interrupted():
                raise KeyboardInterrupt
    stats.ended()
    if not args.json and not text.endswith("\n"):
        print()
    return text, stats


def _print_json(model: str, text: str, stats: Stats, times: dict[str, float]) -> None:
    import msgspec

    num_prompt, num_output = stats.num_prompt_tokens or 0, stats.num_output_tokens or 0
    answer = {
        "model": model,
        "text": text,
        "finish_reason": stats.finish_reason,
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
        },
        "stats": {
            **times,
            "ttft_s": stats.ttft_s,
            "duration_s": stats.duration_s,
            "tokens_per_s": stats.tokens_per_s,
        },
    }
    print(msgspec.json.format(msgspec.json.encode(answer)).decode())
