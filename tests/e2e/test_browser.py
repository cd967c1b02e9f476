"""The tests' own browser sees what it is there to see: a page with faults is told as such."""

from __future__ import annotations

from pathlib import Path

from browser import open_browser

PAGE = """<!doctype html><meta name="viewport" content="width=device-width"><title>faulty</title>
<input id="field" value="old"><p id="said"></p>
<div style="width: 900px">wide</div>
<script>
const field = document.querySelector("#field");
field.oninput = () => document.querySelector("#said").textContent = field.value;
console.error("a", "fault");
fetch("http://example.org/elsewhere").catch(() => {});
setTimeout(() => { throw new Error("uncaught") });
</script>"""


def test_faults_of_a_page_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    with open_browser(tmp_path) as browser:
        page = browser.open(path.as_uri(), width=400, dark=True)
        page.type("#field", "peat & smoke")
        page.wait_for("document.querySelector('#said').textContent === 'peat & smoke'")
        assert page.text("#said") == "peat & smoke"
        assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is True
        assert page.overflow() > 400
        assert page.requested_elsewhere("file:") == ["http://example.org/elsewhere"]
        told = " | ".join(page.errors)
        assert "a fault" in told
        assert "Error: uncaught" in told
        assert "http://example.org/elsewhere" in told
        assert page.screenshot(tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
