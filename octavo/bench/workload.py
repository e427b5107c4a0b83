"""What a benchmark asks and when: prompts, lengths and arrival times, all from one seed.

Pure values; knows nothing of HTTP or of the server. Each request has its own random stream, made
from the seed and its index, so that request 7 is the same whatever else is asked.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

PromptFormat = Literal["ids", "text"]
Message = dict[str, Any]

DEFAULT_VOCAB_SIZE = 32000
"""Token ids are drawn below this unless the vocabulary's size is known: the smallest one among the
model families in wide use (Llama 2, Mistral)."""

_WORD_LIST = """
able acid aged also area army away baby back ball band bank base bath bear beat been beer bell belt
bend best bill bird blow blue boat body bomb bond bone book boom born boss both bowl bulk burn bush
busy call calm came camp card care case cash cast cell chat city club coal coat code cold come cook
cool cope copy core cost crew crop dark data date dawn days dead deal dean dear debt deep deny desk
dial diet disc disk does done door dose down draw drew drop drug dual duke dust duty each earn ease
east easy edge else even ever evil exit face fact fail fair fall farm fast fate fear feed feel feet
fell felt file fill film find fine fire firm fish five flat flow food foot ford form fort four free
from fuel full fund gain game gate gave gear gene gift girl give glad goal goes gold golf gone good
gray grew grey grow gulf hair half hall hand hang hard harm hate have head hear heat held hell help
here hero high hill hire hold hole holy home hope host hour huge hung hunt hurt idea inch into iron
"""
_WORDS = _WORD_LIST.split()
"""Short common words, most of them one token in the vocabularies at hand."""


class Length(msgspec.Struct, frozen=True):
    """Tokens, uniform in low..high, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ConfigError(f"a length must be at least 1, and A:B must not fall, got {self}")

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"

    @classmethod
    def parse(cls, text: str) -> Length:
        """From `128` or `64:256`.

        Raises:
            ConfigError: neither, or below 1.
        """
        low, _, high = text.partition(":")
        try:
            return cls(int(low), int(high or low))
        except ValueError:
            raise ConfigError(f"{text!r} is not a length: write 128 or 64:256") from None

    def spread(self, share: float) -> Length:
        """Widened to mean * (1 - share) .. mean * (1 + share), at least 1.

        Raises:
            ConfigError: the share is not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise ConfigError(f"--random-range must be in [0, 1], got {share:g}")
        low, high = round(self.low * (1 - share)), round(self.high * (1 + share))
        return Length(max(1, low), max(1, high))

    def draw(self, rng: random.Random) -> int:
        """One length."""
        return rng.randint(self.low, self.high)


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request, before it is spelled for an endpoint.

    Attributes:
        prompt: text, token ids, or chat messages.
        max_tokens: most tokens to generate.
        num_prompt_tokens: tokens that the prompt was made to have; None when it is from a file.
    """

    prompt: str | list[int] | list[Message]
    max_tokens: int
    num_prompt_tokens: int | None = None


class TextScale(msgspec.Struct, frozen=True):
    """How a server turns our words into tokens: tokens = overhead + words * per_word.

    The overhead is the chat template and the begin-of-sequence token.
    """

    overhead: float = 0.0
    per_word: float = 1.0

    def words(self, num_tokens: int, *, with_overhead: bool = True) -> int:
        """Words that make this many tokens, at least one."""
        overhead = self.overhead if with_overhead else 0.0
        return max(1, round((num_tokens - overhead) / self.per_word))


def stream_of(seed: int, name: object) -> random.Random:
    """A random stream for one purpose; streams of different names are independent."""
    return random.Random(f"{seed}/{name}")


def random_ids(rng: random.Random, num_tokens: int, vocab_size: int) -> list[int]:
    """Token ids, uniform in the vocabulary but for its first few, where special tokens live."""
    first = min(1000, vocab_size // 10)
    return rng.choices(range(first, vocab_size), k=num_tokens)


def random_text(rng: random.Random, num_words: int) -> str:
    """Words apart by single spaces."""
    return " ".join(rng.choices(_WORDS, k=num_words))


def random_asks(
    num: int,
    seed: int,
    *,
    input_len: Length,
    output_len: Length,
    prefix_len: int = 0,
    prompt_format: PromptFormat = "ids",
    vocab_size: int = DEFAULT_VOCAB_SIZE,
    scale: TextScale | None = None,
    name: str = "ask",
) -> list[Ask]:
    """Random prompts: `prefix_len` tokens that all share, then `input_len` of their own.

    Args:
        num: how many.
        seed: same seed, same prompts; different seeds share nothing that a prefix cache could use.
        input_len: tokens of each prompt beyond the prefix.
        output_len: tokens to generate.
        prefix_len: tokens of the shared beginning.
        prompt_format: token ids (lengths exact) or text (lengths as exact as `scale` is).
        vocab_size: ids are below it.
        scale: for text; None: a word is a token.
        name: asks of different names differ under the same seed (warm-up against measured).
    """
    if vocab_size < 2:
        raise ConfigError(f"--vocab-size must be at least 2, got {vocab_size}")
    scale = scale or TextScale()
    shared = stream_of(seed, "prefix")
    prefix_ids: list[int] = []
    prefix_text = ""
    if prefix_len and prompt_format == "ids":
        prefix_ids = random_ids(shared, prefix_len, vocab_size)
    elif prefix_len:
        prefix_text = random_text(shared, scale.words(prefix_len, with_overhead=False)) + " "
    asks = []
    for index in range(num):
        rng = stream_of(seed, f"{name}/{index}")
        num_input, num_output = input_len.draw(rng), output_len.draw(rng)
        prompt: str | list[int]
        if prompt_format == "ids":
            prompt = prefix_ids + random_ids(rng, num_input, vocab_size)
        else:
            prompt = prefix_text + random_text(rng, scale.words(num_input))
        asks.append(
            Ask(prompt=prompt, max_tokens=num_output, num_prompt_tokens=prefix_len + num_input)
        )
    return asks


def load_dataset(path: Path, default_max_tokens: int) -> list[Ask]:
    """Prompts from a JSONL file: per line an object with one of `prompt`, `messages`, `prompt_ids`.

    `prompt` is text, `messages` OpenAI's chat messages, `prompt_ids` token ids. `max_tokens` may
    stand beside it.

    Raises:
        ConfigError: the file cannot be read, has no prompts, or a line is something else.
    """
    asks: list[Ask] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the dataset {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_Row)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
        prompt = row.prompt or row.messages or row.prompt_ids
        if not prompt:
            raise ConfigError(f"{path}, line {number}: no prompt, messages or prompt_ids")
        asks.append(Ask(prompt=prompt, max_tokens=row.max_tokens or default_max_tokens))
    if not asks:
        raise ConfigError(f"the dataset {path} has no prompts")
    return asks


class _Row(msgspec.Struct):
    prompt: str | None = None
    messages: list[Message] | None = None
    prompt_ids: list[int] | None = None
    max_tokens: int | None = None


def arrivals(num: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Seconds from the start at which requests arrive, rising; the first arrives at once.

    The gaps are gamma-distributed with mean 1 / rate and shape `burstiness`: 1 is a Poisson
    process, less comes in bursts (squared coefficient of variation 1 / burstiness), more is more
    even.

    Raises:
        ConfigError: rate or burstiness is not above 0.
    """
    if not rate > 0 or not burstiness > 0:
        raise ConfigError("--rate and --burstiness must be above 0")
    rng = stream_of(seed, "arrivals")
    times = [0.0]
    while len(times) < num:
        times.append(times[-1] + rng.gammavariate(burstiness, 1 / (rate * burstiness)))
    return times[:num]
