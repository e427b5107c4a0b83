"""`/v1/files` with the official client, and forms that are none."""

from __future__ import annotations

import itertools
import os
import random
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.server import files as routes
from octavo.server.state import files as store
from octavo.server.state.database import StateFolder
from octavo.server.state.files import FileStore
from tests.server.test_responses import client_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.server.conftest import RunningServer


@pytest.fixture
def server(serve: Callable[..., RunningServer], tmp_path: Path) -> RunningServer:
    return serve(state_dir=str(tmp_path))


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    yield from client_of(server)


def on_disk(folder: Path) -> list[str]:
    """Every kept and every scratch file."""
    return sorted(path.name for name in ("files", "scratch") for path in (folder / name).glob("*"))


def test_a_files_life(client: openai.OpenAI, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(3 * 2**20 + 17)
    made = client.files.create(file=("päth.jsonl", data), purpose="batch")
    assert (made.bytes, made.purpose, made.object) == (len(data), "batch", "file")
    assert made.filename == "päth.jsonl"
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == data
    assert on_disk(tmp_path) == [made.id]
    gone = client.files.delete(made.id)
    assert (gone.id, gone.deleted) == (made.id, True)
    assert on_disk(tmp_path) == []
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(made.id)
        assert caught.value.code == "file_not_found"


def test_pages(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}", b"x"), purpose="batch").id for n in range(5)]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == made
    first = client.files.list(limit=2)
    assert [file.id for file in first.data] == made[:2:-1]
    assert first.has_more
    assert client.files.list(purpose="batch_output").data == []
    with pytest.raises(openai.BadRequestError, match="after"):
        client.files.list(after="file-1")


def test_a_file_belongs_to_its_key(serve: Callable[..., RunningServer]) -> None:
    server = serve(api_keys=("sk-1", "sk-2"))
    for one, two in zip(client_of(server, "sk-1"), client_of(server, "sk-2"), strict=True):
        made = one.files.create(file=b"x", purpose="batch")
        assert two.files.list().data == []
        for ask in (two.files.retrieve, two.files.content, two.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        assert one.files.content(made.id).read() == b"x"


def form(*parts: tuple[str, bytes], boundary: bytes = b"b") -> bytes:
    body = b""
    for disposition, data in parts:
        head = f"Content-Disposition: form-data; {disposition}\r\n\r\n".encode()
        body += b"--" + boundary + b"\r\n" + head + data + b"\r\n"
    return body + b"--" + boundary + b"--\r\n"


FILE = ('name="file"; filename="a"', b"x")
PURPOSE = ('name="purpose"', b"batch")
BAD_FORMS: list[tuple[bytes, str]] = [
    (form(PURPOSE), "file"),
    (form(FILE), "purpose"),
    (form(FILE, ('name="purpose"', b"fine-tune")), "purpose"),
    (form(FILE, FILE, PURPOSE), "file"),
    (form(FILE, PURPOSE, PURPOSE), "purpose"),
    (form(('name="file"', b"x"), PURPOSE), "file"),
    (form(FILE, ('name="purpose"; filename="b"', b"batch")), "purpose"),
    (form(FILE, PURPOSE, ('name="expires_after[seconds]"', b"3600")), "expires_after[seconds]"),
    (form(FILE, ('name="purpose"', b"x" * 5000)), "purpose"),
    (form(("", b"x")), ""),
    (form(*[(f'name="a{n}"', b"x") for n in range(20)]), ""),
    (form(FILE, PURPOSE)[:-20], ""),
    (b"nonsense", ""),
    (b"", ""),
]


@pytest.mark.parametrize(("body", "param"), BAD_FORMS)
def test_bad_forms_are_refused_and_leave_nothing(
    server: RunningServer, tmp_path: Path, body: bytes, param: str
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = server.client.post("/v1/files", content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert (response.json()["error"]["param"] or "") == param
    assert on_disk(tmp_path) == []


def test_other_bodies_are_refused(server: RunningServer) -> None:
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary="):
        response = server.client.post("/v1/files", content=b"{}", headers={"Content-Type": kind})
        assert response.status_code == 400
        assert "multipart/form-data" in response.json()["error"]["message"]


def test_large_files_are_refused(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_UPLOAD_BYTES", 100_000)
    files = {"file": ("a", b"x" * 200_000)}
    response = server.client.post("/v1/files", files=files, data={"purpose": "batch"})
    assert response.status_code == 413
    # Not announced: it is noticed as it comes.
    body = form(PURPOSE, ('name="file"; filename="a"', b"x" * 200_000))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = server.client.post("/v1/files", content=iter([body]), headers=headers)
    assert response.status_code == 413
    assert on_disk(tmp_path) == []


def test_what_killed_uploads_left_is_swept(client: openai.OpenAI, tmp_path: Path) -> None:
    made = client.files.create(file=b"x", purpose="batch")
    old, new = (tmp_path / "scratch" / f"upload-{name}" for name in ("old", "new"))
    for path, age_s in ((old, 7200), (new, 60)):
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    FileStore(StateFolder(str(tmp_path), "")).sweep()
    assert on_disk(tmp_path) == sorted([made.id, "upload-new"])


def test_no_room(
    server: RunningServer, tmp_path: Path, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.app.context.state.files, "_max_bytes", 10)
    made = client.files.create(file=b"x" * 8, purpose="batch")
    with pytest.raises(openai.InternalServerError, match="no room") as caught:
        client.files.create(file=b"x" * 3, purpose="batch")
    assert caught.value.status_code == 503
    assert on_disk(tmp_path) == [made.id]
    client.files.delete(made.id)
    assert client.files.create(file=b"x" * 3, purpose="batch").id
    assert store.MAX_BYTES > 10


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    data=st.binary(max_size=300) | st.sampled_from([b"\r\n--b", b"--b--\r\n", b"\r\n"]),
    cuts=st.lists(st.integers(0, 400), max_size=5),
    noise=st.binary(max_size=20),
)
def test_forms_in_any_pieces(
    server: RunningServer, data: bytes, cuts: list[int], noise: bytes
) -> None:
    """However a form is cut, the file is what was sent; a broken one is a 400 and no more."""
    boundary = b"boundary"
    body = form(PURPOSE, ('name="file"; filename="a"', data), boundary=boundary)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    pieces = [body[a:b] for a, b in itertools.pairwise(places)]
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}

    def send(content: Any) -> httpx.Response:
        return server.client.post("/v1/files", content=content, headers=headers)

    made = send(iter(pieces))
    assert made.status_code == 200, made.text
    assert server.client.get(f"/v1/files/{made.json()['id']}/content").content == data
    place = places[len(places) // 2]
    assert send(body[:place] + noise + body[place:]).status_code in (200, 400)
