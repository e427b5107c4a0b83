"""The gateway's configuration: one YAML file, read and checked as a whole. `docs/gateway-config.md`
has all its fields.

Every section is described in a file of its own (`config_*`); here they are put together. What is
wrong is told all at once, each with line, column and path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from octavo.errors import ConfigError
from octavo.gateway.config_backends import Backend
from octavo.gateway.config_budgets import BudgetsSection
from octavo.gateway.config_judges import EscalationSection, JudgeSection
from octavo.gateway.config_keys import KeysSection
from octavo.gateway.config_limits import LimitsSection
from octavo.gateway.config_lines import Lines, Problem, is_bad
from octavo.gateway.config_routes import Alias, Name, RoutingSection, Rule, TierSection
from octavo.gateway.config_server import AdminSection, LedgerSection, ServerSection
from octavo.gateway.secret import Secret

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 4 * 1024**2

__all__ = ["GatewayConfig", "GatewayConfigError", "Secret", "check_config", "load_config", "parse"]

_ModelName = Annotated[str, Meta(min_length=1, max_length=256)]


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of the gateway's configuration. Names that begin with `x-` are left for anchors.

    Attributes:
        server: where the gateway listens.
        ledger: where records, keys and the audit log are kept.
        admin: who may administer the gateway.
        backends: servers that answer requests, by name.
        routing: how requests are read and spread.
        tiers: targets that are as good as one another, by name.
        models: names that callers may ask for, and where these go.
        rules: where requests of a kind go, whatever the model's name; before `models`.
        judges: what decides whether an answer is good enough, by name.
        escalation: what happens around judgements.
        keys: who may call.
        limits: how much may be asked for in how much time.
        budgets: how much may be spent in a period.
        redis_url: what several gateways share, where a section says `store: redis`:
            `redis://host:6379/0`.
    """

    backends: Annotated[dict[Name, Backend], Meta(min_length=1)]
    routing: RoutingSection = RoutingSection()
    tiers: dict[Name, TierSection] = {}
    models: dict[_ModelName, Alias] = {}
    rules: tuple[Rule, ...] = ()
    judges: dict[Name, JudgeSection] = {}
    escalation: EscalationSection = EscalationSection()
    keys: KeysSection = KeysSection()
    limits: LimitsSection = LimitsSection()
    budgets: BudgetsSection = BudgetsSection()
    redis_url: Secret | None = None
    server: ServerSection = ServerSection()
    ledger: LedgerSection = LedgerSection()
    admin: AdminSection = AdminSection()


class GatewayConfigError(ConfigError):
    """A configuration is wrong.

    Attributes:
        problems: all of them, by line.
    """

    def __init__(self, source: str, problems: list[Problem]) -> None:
        super().__init__("\n".join(f"{source}:{problem}" for problem in problems))
        self.problems = problems


def load_config(path: Path) -> GatewayConfig:
    """A configuration, whole and checked.

    Raises:
        GatewayConfigError: something is wrong with it; the message has a line for each.
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    config, problems = parse(data)
    if config is None:
        raise GatewayConfigError(str(path), problems)
    return config


def check_config(path: Path) -> list[str]:
    """What is wrong with a configuration, a line each with file, line, column, field and what to
    do; nothing: it is good.
    """
    try:
        load_config(path)
    except ConfigError as error:
        return str(error).splitlines()
    return []


def parse(data: bytes) -> tuple[GatewayConfig | None, list[Problem]]:
    """A configuration's bytes, read and checked: the value, or what is wrong with it by line."""
    import yaml

    from octavo.gateway.config_check import check

    if len(data) > MAX_BYTES:
        return None, [Problem(1, 1, "", f"longer than {MAX_BYTES} bytes")]
    lines = Lines()
    try:
        node = yaml.compose(data.decode("utf-8-sig"), Loader=_loader())
        if node is None:
            return None, [Problem(1, 1, "", "the file is empty: it needs `backends`")]
        config = lines.read(node, GatewayConfig)
        check(lines)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return None, [Problem(line, 1, "", "not UTF-8")]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (0, 0) if mark is None else (mark.line, mark.column)
        message = f"not YAML: {error.problem or error.context}"
        return None, [Problem(line + 1, column + 1, "", message)]
    except (yaml.YAMLError, RecursionError) as error:
        return None, [Problem(1, 1, "", f"not YAML: {' '.join(str(error).split())[:200]}")]
    except ConfigError as error:
        return None, [*sorted(lines.problems), Problem(1, 1, "", str(error))]
    problems = sorted(set(lines.problems))
    return (None, problems) if problems or is_bad(config) else (config, [])


def _loader() -> Any:
    """The parser in C where PyYAML has it: ten times as fast."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
