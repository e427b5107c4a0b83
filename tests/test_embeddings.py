"""all-MiniLM-L6-v2 behind the real server: its vectors are those of `transformers`."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import openai
import pytest

from tests.test_readme import BASE_URL, ROOT, _wait_until_ready, blocks, environment
from tests.text.test_encode_texts import write_bert_tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = (ROOT / "docs" / "embeddings.md").read_text()
TEXTS = [
    "A man is eating food.",
    "Someone has lunch.",
    "The stock market fell sharply on Monday, and nobody knows why it did.",
    "Naïve café, 世界 🙂",
    "x",
    "",
    "word " * 180,
    *(f"sentence number {number}" for number in range(25)),
]


@contextmanager
def served(model: str, said: str) -> Iterator[str]:
    """`octavo serve` on a free port; its log must have said something."""
    command = [sys.executable, "-m", "octavo.cli.main", "serve", model, "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, env=environment(), stdout=log, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield _wait_until_ready(server, log)
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(30)
            log.seek(0)
            text = log.read()
        assert code == 0
        assert said in text


@pytest.fixture(scope="module")
def base_url(minilm_path: Path) -> Iterator[str]:
    """A server of `all-minilm`."""
    assert minilm_path.is_dir()
    said = "embed: vectors of 384 numbers from up to 256 tokens, by mean, normalized"
    with served("all-minilm", said) as url:
        yield url


@pytest.fixture(scope="module")
def expected(minilm_path: Path) -> np.ndarray:
    """Mean of the hidden states of all tokens, of length 1, a text at a time."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    model = AutoModel.from_pretrained(minilm_path, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for text in TEXTS:
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(states.mean(0), dim=0).numpy())
    return np.stack(vectors)


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.mark.model
@pytest.mark.parametrize("encoding_format", ["float", "base64", None])
def test_vectors_are_those_of_transformers(
    client: openai.OpenAI, expected: np.ndarray, encoding_format: Any
) -> None:
    kind = openai.NOT_GIVEN if encoding_format is None else encoding_format
    answer = client.embeddings.create(model="all-minilm", input=TEXTS, encoding_format=kind)
    vectors: list[Any] = [item.embedding for item in answer.data]
    if encoding_format == "base64":
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    np.testing.assert_allclose(np.array(vectors), expected, atol=1e-5)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(TEXTS)


@pytest.mark.model
def test_many_at_a_time(client: openai.OpenAI, expected: np.ndarray) -> None:
    def one(text: str) -> list[float]:
        return client.embeddings.create(model="all-minilm", input=text).data[0].embedding

    with ThreadPoolExecutor(16) as pool:
        vectors = list(pool.map(one, TEXTS * 3))
    np.testing.assert_allclose(np.array(vectors), np.tile(expected, (3, 1)), atol=1e-5)


@pytest.mark.model
def test_long_texts_are_refused_or_cut(client: openai.OpenAI, minilm_path: Path) -> None:
    text = "word " * 300
    with pytest.raises(openai.BadRequestError, match="302 tokens"):
        client.embeddings.create(model="all-minilm", input=text)
    cut = client.embeddings.create(
        model="all-minilm", input=text, extra_body={"truncate_prompt_tokens": -1}
    )
    whole = client.embeddings.create(model="all-minilm", input="word " * 254)
    assert cut.usage.prompt_tokens == whole.usage.prompt_tokens == 256
    np.testing.assert_allclose(cut.data[0].embedding, whole.data[0].embedding, atol=1e-5)


@pytest.mark.model
def test_scores_are_cosines(base_url: str, expected: np.ndarray) -> None:
    body = {"model": "all-minilm", "text_1": TEXTS[0], "text_2": TEXTS[1:5]}
    answer = httpx.post(f"{base_url}/score", json=body, timeout=60).json()
    scores = [item["score"] for item in answer["data"]]
    np.testing.assert_allclose(scores, expected[1:5] @ expected[0], atol=1e-5)


@pytest.mark.model
def test_requests_are_counted_and_chats_refused(base_url: str, client: openai.OpenAI) -> None:
    client.embeddings.create(model="all-minilm", input=["a", "b"])
    metrics = httpx.get(f"{base_url}/metrics").text
    [tokens] = re.findall(r"^vllm:prompt_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    [ended] = re.findall(r'^vllm:request_success_total\{.*"stop".*\} (\S+)$', metrics, re.MULTILINE)
    assert float(tokens) >= 6
    assert float(ended) >= 2
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        client.chat.completions.create(
            model="all-minilm", messages=[{"role": "user", "content": "Hello"}]
        )


@pytest.mark.model
@pytest.mark.parametrize("block", blocks(DOCS, "python", "bash"), ids=lambda b: b.language)
def test_the_examples_of_the_docs_run(block: Any, base_url: str, tmp_path: Path) -> None:
    programs = {"python": [sys.executable, "-c"], "bash": ["bash", "-euo", "pipefail", "-c"]}
    done = subprocess.run(
        [*programs[block.language], block.code.replace(BASE_URL, base_url)],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    if block.language == "bash":
        assert done.stdout.index("Cats like fish.") < done.stdout.index("Dogs eat meat.")
        assert "Stocks" not in done.stdout
    else:
        assert float(done.stdout.split()[1]) > 0.5


def test_a_cross_encoder_reranks_as_transformers_does(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    write_bert_tokenizer(tmp_path)
    config = BertConfig(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        initializer_range=0.5,
        num_labels=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = BertTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    query, documents = "The cat sat", ["dog", "cat cat", "unbelievable!", "the " * 60, "世界 CAFÉ"]
    inputs = tokenizer(
        [query] * len(documents),
        documents,
        padding=True,
        truncation="longest_first",
        max_length=24,
        return_tensors="pt",
    )
    with torch.inference_mode():
        scores = model(**inputs).logits[:, 0].sigmoid()
    order = scores.argsort(descending=True).tolist()
    body: dict[str, Any] = {
        "model": str(tmp_path),
        "query": query,
        "documents": documents,
        "truncate_prompt_tokens": -1,
    }
    with served(str(tmp_path), "classify and score: vectors of 1 numbers") as url:
        answer = httpx.post(f"{url}/rerank", json=body, timeout=60).json()
        assert [result["index"] for result in answer["results"]] == order
        for result in answer["results"]:
            expected = scores[result["index"]].item()
            assert result["relevance_score"] == pytest.approx(expected, abs=1e-5)
        del body["truncate_prompt_tokens"]
        refused = httpx.post(f"{url}/rerank", json=body, timeout=60)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "documents[3]"
        fields = {"model": str(tmp_path), "input": "The cat"}
        answer = httpx.post(f"{url}/classify", json=fields, timeout=60).json()
        assert answer["data"][0]["label"] == "LABEL_0"
