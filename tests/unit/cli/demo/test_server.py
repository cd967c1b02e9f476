"""The playground's server, asked in this process: who may ask, and what is escaped."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from potstill.cli.demo.playground import open_playground
from potstill.cli.demo.server import create_app, listen, render, require_server, serve
from potstill.pipeline.run_models import models_of_run
from tiny_runs import tiny_run

HERE = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    run = tiny_run(tmp_path_factory.mktemp("run"), "classification")
    evaluation = {"examples": [{"query": "</textarea><script>alert('x')</script> & co"}]}
    opened = open_playground(models_of_run(run), evaluation, lambda _: None)
    return TestClient(create_app(opened), base_url=HERE)


def test_the_page_and_what_it_needs_are_its_own(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    for path, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/playground.js", "text/javascript; charset=utf-8"),
        ("/playground.css", "text/css; charset=utf-8"),
    ):
        reply = client.get(path)
        assert reply.headers["content-type"] == kind
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert reply.headers["x-content-type-options"] == "nosniff"
        for elsewhere in ("http://", "https://", "//cdn", "@import", "url("):
            assert elsewhere not in reply.text, f"{path} names {elsewhere}"
    assert "access-control-allow-origin" not in page.headers
    assert client.get("/nothing").status_code == 404


def test_what_comes_from_the_run_is_escaped(client: TestClient) -> None:
    page = client.get("/").text
    assert "<script>alert" not in page
    assert (
        "&lt;/textarea&gt;&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; co</textarea>"
        in page
    )


@pytest.mark.parametrize("path", ["/answer", "/times"])
def test_a_question_has_an_answer_or_a_sentence(client: TestClient, path: str) -> None:
    reply = client.post(path, json={"typed": ["oak"]})
    assert reply.status_code == 200
    expected = {"/answer": "models", "/times": "milliseconds"}[path]
    assert expected in reply.json()
    assert reply.headers["cache-control"] == "no-store"
    reply = client.post(path, json={"typed": ["  "]})
    assert reply.status_code == 422
    assert reply.json() == {"problem": "“Text” is empty. Type some text into it."}
    assert client.get(path).status_code == 405


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b'{"typed": "x"}', b'{"typed": [1]}', b'{"typed": ["a","b"]}'],
)
def test_a_request_that_is_none_of_the_pages_is_refused(client: TestClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = client.post("/answer", content=body, headers=headers)
    assert reply.status_code == 422
    assert reply.json()["problem"] == 'The request is not {"typed": […]} with 1 texts.'


def test_half_a_character_and_deep_nesting_are_told(client: TestClient) -> None:
    headers = {"content-type": "application/json"}
    reply = client.post("/answer", content=b'{"typed": ["oak \\ud800"]}', headers=headers)
    assert reply.status_code == 422
    assert reply.json()["problem"].startswith("The text holds half a character")
    reply = client.post("/answer", content=b"[" * 100_000, headers=headers)
    assert reply.status_code == 422


def test_other_pages_can_not_ask(client: TestClient) -> None:
    # what a form or a fetch of another page may send unasked is no JSON
    body = '{"typed": ["oak"]}'
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        reply = client.post("/answer", content=body, headers={"content-type": kind})
        assert (reply.status_code, "models" in reply.json()) == (422, False)
    # and before it sends JSON, it asks: there is no leave
    asks = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in client.options("/answer", headers=asks).headers
    # a name that was made to point here is not ours
    for path in ("/", "/answer"):
        reply = client.request("POST", path, headers={"host": "evil.example:8765"})
        assert reply.status_code == 400
    assert client.get("/", headers={"host": "localhost:8765"}).status_code == 200


def test_more_than_anyone_types_is_refused(client: TestClient) -> None:
    reply = client.post("/answer", json={"typed": ["x" * 2_000_001]})
    assert reply.json() == {"problem": "The text is too long. Paste less."}


def test_only_this_machine_can_reach_the_port() -> None:
    with listen(0) as taken:
        host, port = taken.getsockname()
        assert host == "127.0.0.1"
        taken.listen()
        message = f"^--port: {port} is taken\\. Choose another port, or 0 for any free one\\.$"
        with pytest.raises(ValueError, match=message):
            listen(port)


def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_server()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    message = r"^uvicorn: the package is not installed, .* Run `pip install 'potstill\[demo\]'`\.$"
    with pytest.raises(ValueError, match=message):
        serve(tmp_path, 0, open_browser=False)


def test_a_model_that_is_absent_is_said_to_be_on_the_page(tmp_path: Path) -> None:
    opened = open_playground(models_of_run(tiny_run(tmp_path, "multi_label")), {}, lambda _: None)
    opened.absent = {"<teacher>": "no such folder"}
    assert "&lt;teacher&gt; does not answer: no such folder." in render(opened)


def test_no_server_is_left_on_a_port(tmp_path: Path) -> None:
    """A run that can't be shown leaves the port free."""
    with listen(0) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(ValueError, match="not a run folder, there is no recipe"):
        serve(tmp_path, port, open_browser=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
