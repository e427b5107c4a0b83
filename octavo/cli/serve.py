"""`octavo serve`: OpenAI's API over one model. Knows flags; `launch` does the work."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import sys
from pathlib import Path
from typing import get_args

from octavo.cli.engine_flags import add_engine_flags, attribute_docs, engine_config
from octavo.cli.usage_flags import add_usage_flags, usage_settings
from octavo.config import (
    EngineConfig,
    LogLevel,
    OTLPProtocol,
    ServerConfig,
    api_key_digest,
    default_api_keys,
    parse_bytes,
    read_api_keys,
)
from octavo.errors import ConfigError, ModelNotFoundError
from octavo.text.answers import REASONING_FORMATS, TOOL_FORMATS

_EXAMPLES = """\
examples:
  octavo serve smollm2 --pull
  octavo serve ./my-model --host 0.0.0.0 --api-key "$(openssl rand -hex 24)"
  octavo serve ./my-model --host 0.0.0.0 --api-key-file keys.txt --ssl-certfile cert.pem
  octavo serve ./my-model --api-server-count 4
  octavo serve all-minilm --pull                 # /v1/embeddings, /score, /rerank
  octavo serve org/name --max-model-len 8192 --max-num-seqs 64 --served-model-name chat
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}]}'
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over OpenAI's API",
        description="Serve a model over OpenAI's API, to many clients at once.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    defaults = ServerConfig()
    docs = attribute_docs(ServerConfig)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a pulled name (`octavo models`), a Hugging Face folder, or a GGUF file",
    )
    parser.add_argument(
        "--pull", action="store_true", help="fetch the model first if it is not here"
    )
    parser.add_argument(
        "--gateway-config",
        type=Path,
        metavar="FILE",
        help="put a gateway in front, which has this configuration (`octavo gateway`): it says "
        "where to listen and who may call, and has a backend with a Unix socket for this engine",
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default=defaults.host,
        help=f"address to listen at; 0.0.0.0 is every one (default: {defaults.host})",
    )
    server.add_argument(
        "--port",
        type=int,
        default=defaults.port,
        metavar="N",
        help=f"port to listen at; 0 takes a free one (default: {defaults.port})",
    )
    server.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="a key that callers must present, may be given again for more keys; "
        "also $OCTAVO_API_KEY, apart by commas (default: no authentication)",
    )
    server.add_argument(
        "--api-key-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="more keys, one a line, which the process list does not show",
    )
    for name in ("uds", "ssl_certfile", "ssl_keyfile"):
        server.add_argument(f"--{name.replace('_', '-')}", metavar="FILE", help=_help(docs, name))
    server.add_argument("--state-dir", metavar="FOLDER", help=_help(docs, "state_dir"))
    for name in ("allowed_origins", "allowed_methods", "allowed_headers"):
        default = getattr(defaults, name)
        server.add_argument(
            f"--{name.replace('_', '-')}",
            type=_names,
            default=default,
            metavar="NAMES",
            help=f"{_help(docs, name)}; apart by commas, or a JSON list "
            f"(default: {','.join(default) or 'none'})",
        )
    server.add_argument(
        "--allow-credentials", action="store_true", help=_help(docs, "allow_credentials")
    )
    for name in ("max_body_bytes", "max_header_bytes"):
        default = getattr(defaults, name)
        server.add_argument(
            f"--{name.replace('_', '-')}",
            type=parse_bytes,
            default=default,
            metavar="SIZE",
            help=f"{_help(docs, name)} (default: {default // 1024} KiB)",
        )
    server.add_argument(
        "--served-model-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help=_help(docs, "served_model_names") + " (default: MODEL as it is given)",
    )
    for name, formats in (
        ("tool_call_parser", TOOL_FORMATS),
        ("reasoning_parser", REASONING_FORMATS),
    ):
        server.add_argument(
            f"--{name.replace('_', '-')}",
            choices=("auto", "none", *formats),
            default=getattr(defaults, name),
            metavar="NAME",
            help=f"{_help(docs, name)}; of {', '.join(formats)} "
            f"(default: {getattr(defaults, name)})",
        )
    server.add_argument(
        "--trust-request-chat-template",
        action="store_true",
        help=_help(docs, "trust_request_chat_template"),
    )
    server.add_argument(
        "--otlp-endpoint",
        "--otlp-traces-endpoint",
        metavar="URL",
        help=_help(docs, "otlp_endpoint"),
    )
    server.add_argument(
        "--otlp-protocol", choices=get_args(OTLPProtocol), help=_help(docs, "otlp_protocol")
    )
    numbers: tuple[tuple[str, type, str], ...] = (
        ("otlp_traces_sample_ratio", float, "RATIO"),
        ("api_server_count", int, "N"),
        ("sse_keep_alive", float, "SECONDS"),
        ("shutdown_timeout", float, "SECONDS"),
        ("max_num_queued_requests", int, "N"),
        ("watchdog_timeout", float, "SECONDS"),
        ("max_engine_restarts", int, "N"),
    )
    for name, kind, metavar in numbers:
        default = getattr(defaults, name)
        text = _help(docs, name)
        server.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=default,
            metavar=metavar,
            help=text if default is None else f"{text} (default: {default:g})",
        )
    server.add_argument(
        "--log-level",
        choices=get_args(LogLevel),
        default=defaults.log_level,
        help=_help(docs, "log_level") + f" (default: {defaults.log_level})",
    )
    add_usage_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def _help(docs: dict[str, str], name: str) -> str:
    return docs[name].rstrip(".").replace("None:", "default:")


def _names(text: str) -> tuple[str, ...]:
    """`a,b` or, as vLLM wants it, `["a", "b"]`."""
    try:
        given = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
    except ValueError:
        given = None
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise argparse.ArgumentTypeError(f"{text!r} is neither names apart by commas nor JSON")
    return tuple(name.strip() for name in given if name.strip())


def server_config(args: argparse.Namespace) -> ServerConfig:
    """The server's configuration out of the flags, the key files and `$OCTAVO_API_KEY`.

    Raises:
        ConfigError: an empty key or name, a file without keys, or a port that is none.
    """
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port must be in 0..65535, got {args.port}")
    if not all(key.strip() for key in args.api_key):
        raise ConfigError("--api-key must not be empty: an empty key would let everybody in")
    names = tuple(args.served_model_name) or (args.model,)
    if not all(names):
        raise ConfigError("--served-model-name must not be empty")
    keys = [*args.api_key, *default_api_keys()]
    for path in args.api_key_file:
        keys += read_api_keys(path)
    return ServerConfig(
        host=args.host,
        port=args.port,
        uds=args.uds,
        ssl_certfile=args.ssl_certfile,
        ssl_keyfile=args.ssl_keyfile,
        api_key_digests=tuple(dict.fromkeys(map(api_key_digest, keys))),
        allowed_origins=args.allowed_origins,
        allowed_methods=args.allowed_methods,
        allowed_headers=args.allowed_headers,
        allow_credentials=args.allow_credentials,
        api_server_count=args.api_server_count,
        state_dir=args.state_dir,
        max_body_bytes=args.max_body_bytes,
        max_header_bytes=args.max_header_bytes,
        sse_keep_alive=args.sse_keep_alive,
        shutdown_timeout=args.shutdown_timeout,
        served_model_names=names,
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        trust_request_chat_template=args.trust_request_chat_template,
        log_level=args.log_level,
        otlp_endpoint=args.otlp_endpoint,
        otlp_protocol=args.otlp_protocol,
        otlp_traces_sample_ratio=args.otlp_traces_sample_ratio,
        max_num_queued_requests=args.max_num_queued_requests,
        watchdog_timeout=args.watchdog_timeout,
        max_engine_restarts=args.max_engine_restarts,
        **usage_settings(args),
    )


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; the exit code."""
    server = server_config(args)
    if args.pull:
        pull_if_missing(args.model)
    engine = engine_config(args)
    if args.gateway_config is not None:
        return _behind_gateway(args, engine, server)
    if server.uds is None and not is_loopback(server.host) and not server.api_key_digests:
        print(_open_door(server.host, server.port), file=sys.stderr, flush=True)
    from octavo.launch import serve
    from octavo.observability.logs import configure_logs

    configure_logs(server.log_level)
    return serve(engine, server)


def _behind_gateway(args: argparse.Namespace, engine: EngineConfig, server: ServerConfig) -> int:
    """Serve behind a gateway; the exit code.

    Raises:
        ConfigError: a flag says what the gateway's configuration has to say.
    """
    defaults = ServerConfig()
    for flag, is_given, section in (
        ("--host", args.host != defaults.host, "server"),
        ("--port", args.port != defaults.port, "server"),
        ("--uds", args.uds is not None, "the backend's url"),
        ("--ssl-certfile", args.ssl_certfile is not None, "server"),
        ("--ssl-keyfile", args.ssl_keyfile is not None, "server"),
        ("--api-key", bool(args.api_key), "keys"),
        ("--api-key-file", bool(args.api_key_file), "keys"),
    ):
        if is_given:
            raise ConfigError(f"{flag} is for the gateway to say: see `{section}` in its file")
    from octavo.cli.serve_gateway import serve_behind_gateway
    from octavo.observability.logs import configure_logs

    configure_logs(server.log_level)
    return serve_behind_gateway(
        engine, server, args.gateway_config, has_own_ledger=args.ledger is not None
    )


def pull_if_missing(model: str) -> None:
    """Fetch `model` with progress bars unless it is on this machine.

    Raises:
        StartupError: it cannot be fetched.
    """
    from octavo.cli import pull
    from octavo.weights import store

    try:
        store.resolve(model)
    except ModelNotFoundError:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the command that asked
            code = pull.run(argparse.Namespace(names=[model], quiet=False))
        if code == 130:
            raise KeyboardInterrupt from None


def is_loopback(host: str) -> bool:
    """True when only this machine can reach an address."""
    if host in ("localhost", "ip6-localhost") or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _open_door(host: str, port: int) -> str:
    lines = (
        f"WARNING: {host}:{port} can be reached from other machines, and there is no API key.",
        "Whoever reaches it can use this model, at your cost. Give --api-key-file FILE or set",
        "OCTAVO_API_KEY, or listen at --host 127.0.0.1 behind a proxy that checks callers.",
    )
    text = "\n".join(f"  {line}" for line in lines)
    rule = "!" * (max(map(len, lines)) + 4)
    if sys.stderr.isatty():
        return f"\x1b[1;31m{rule}\n{text}\n{rule}\x1b[0m"
    return f"{rule}\n{text}\n{rule}"
