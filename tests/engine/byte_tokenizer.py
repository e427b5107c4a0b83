"""A real tokenizer whose tokens are single bytes: ids 0 to 2 are special, byte b is id b + 3."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from octavo.text import tokenizer as octavo_tokenizer
from octavo.text.parts import TokenizerParts

SPECIAL = ["<unk>", "<s>", "</s>"]
EOS = 2
VOCAB_SIZE = 259


def _printable_bytes() -> list[str]:
    """Byte-level BPE's character for each byte (GPT-2's table), in the order of the bytes."""
    direct = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in direct else chr(next(rest)) for byte in range(256)]


def byte_backend() -> Tokenizer:
    vocab = {text: index for index, text in enumerate([*SPECIAL, *_printable_bytes()])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return backend


def byte_tokenizer() -> octavo_tokenizer.Tokenizer:
    return octavo_tokenizer.Tokenizer(
        TokenizerParts(
            byte_backend(),
            VOCAB_SIZE,
            special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
            eos_token_ids=frozenset({EOS}),
        )
    )


def ids_of(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]
