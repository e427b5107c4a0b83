"""Shapes of attention's launches, and when prefixes are shared: numbers, chosen by measurement.

Knows nothing of what is launched, or of a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.attention.work import StepShape


@dataclass(frozen=True, slots=True)
class Tuning:
    """Shape of one kind of launch.

    Attributes:
        rows: query rows (tokens times heads of a group) of a tile, a power of two >= 16.
        key_tile: keys folded in at a time, a power of two >= 16.
        num_warps, num_stages: of Triton's compiler.
        programs_per_sm: programs that a launch should have for each multiprocessor.
        min_chunk: fewest keys worth a program of their own.
        merged_rows, merged_parts: of a tile whose parts are added up, those that one program takes
            and those that it holds at a time; powers of two.
        looks_ahead: blocks are looked up a tile in advance, so that stages hold tiles to come.
        max_chunk: most keys of a program, as long as `most_per_sm` programs for each
            multiprocessor, besides one for each tile and KV head, suffice for that; None: any.
    """

    rows: int
    key_tile: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    min_chunk: int
    merged_rows: int = 1
    merged_parts: int = 16
    looks_ahead: bool = False
    max_chunk: int | None = None
    most_per_sm: int = 0


@dataclass(frozen=True, slots=True)
class PromptTunings:
    """Of the kernel for prompts; both have tiles of as many rows.

    Attributes:
        few_keys: for graphs, and for steps whose tiles have few keys in the mean.
        many_keys: for others.
        min_mean_keys: where these begin.
    """

    few_keys: Tuning
    many_keys: Tuning
    min_mean_keys: int


@dataclass(frozen=True, slots=True)
class Tunings:
    """Of a model's launches.

    Attributes:
        short, long: for chunks of few and of many tokens.
        prompts: for chunks of many tokens, by a kernel of their own; None: `long` is for them.
            Prefixes that are shared use `long` in any case.
        many: for graphs of `min_many` decodes or more that share nothing: the program that leaves
            a tile's last part merges them. None: as other short chunks.
        decodes: for graphs of any number of decodes that share nothing, by a kernel of their own,
            which merges parts in the same way; None: `many` is for them.
    """

    short: Tuning
    long: Tuning
    many: Tuning | None = None
    min_many: int = 17
    prompts: PromptTunings | None = None
    decodes: Tuning | None = None

    @property
    def apart(self) -> Tuning | None:
        """`decodes` or `many`."""
        return self.decodes or self.many

    def serve_apart(self, step: StepShape | None) -> bool:
        """Whether `apart` is for a graph of this shape; None: not a graph."""
        if step is None or self.apart is None or step.shares or not step.is_decode:
            return False
        return self.decodes is not None or step.num_seqs >= self.min_many

    def kind_apart(self, window: int | None) -> Kind | None:
        """The launch that `apart` is the tuning of, for layers with this window."""
        if self.apart is None:
            return None
        is_decodes = self.decodes is not None
        return Kind(window, self.apart, 1, merges_itself=True, is_decodes=is_decodes)


@dataclass(frozen=True, slots=True)
class Sharing:
    """When decodes read a prefix that they share once for all of them.

    It takes a launch more, and parts that are written and added up.

    Attributes:
        min_seqs: fewest sequences with one prefix, >= 2.
        min_tokens: fewest tokens of it.
        min_saved_bytes: fewest bytes of keys and values that a layer must be spared.
    """

    min_seqs: int = 4
    min_tokens: int = 256
    # About what an H100 reads in the 8 us that two more launches take.
    min_saved_bytes: int = 24 * 2**20


@dataclass(frozen=True, slots=True)
class Kind:
    """What a launch is, apart from its tables.

    Attributes:
        window: of the layers that it is for.
        tuning: of its tiles.
        merge_tokens: most tokens of a merge; 0: a shared prefix, whose second table is a list of
            tokens, and whose parts are merged by the next launch.
        merges_itself: the program that leaves a tile's last part merges them; tiles have a token.
        is_prompts: by the kernel for prompts.
        is_decodes: by the kernel for decodes, which merges itself.
    """

    window: int | None
    tuning: Tuning
    merge_tokens: int
    merges_itself: bool = False
    is_prompts: bool = False
    is_decodes: bool = False


def padded_group(group: int) -> int:
    """Query heads of a KV head, as kernels for Hopper have room for them: a power of two."""
    return 1 << (group - 1).bit_length()


def tile_rows(tuning: Tuning, group: int) -> int:
    """Rows of a tile, at least one token's."""
    return max(tuning.rows, padded_group(group))
