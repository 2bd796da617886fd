"""`bench`: starts the benchmarks and writes down what they found."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.cli import bench
from monitor.cli.machine import described, versions
from tests.monitor.cli.conftest import Cli

QUICK = """
import json, sys
print("progress", file=sys.stderr)
print(json.dumps({
    "texts": 1234, "args": " ".join(sys.argv[1:]), "spread": {"least": 0.51234, "most": 2},
    "ways": [{"way": "a|b", "texts_per_s": 12345.6}, {"way": "peer", "accuracy": None, "range": [1, 2.5]}],
}))
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three benchmarks and a page with a section for the first two."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "_helper.py").write_text("")
    (folder / "quick.py").write_text(QUICK)
    (folder / "plain.py").write_text("print('a table\\nof two lines')")
    (folder / "broken.py").write_text("raise SystemExit(7)  # '\"--json\"'")
    monkeypatch.setattr(bench, "FOLDER", folder)
    page = tmp_path / "page.md"
    sections = "".join(f"<!-- bench {n} -->\nold\n<!-- bench {n}: end -->\n" for n in ("quick", "plain", "broken"))
    page.write_text(f"# Figures\n\n{sections}\nThe rest.\n")
    return page


def test_without_a_name_the_benchmarks_are_listed(cli: Cli, page: Path) -> None:
    done = cli("bench")
    assert (done.code, done.out.split()) == (0, ["broken", "plain", "quick"])


def test_every_benchmark_of_the_checkout_has_a_section(cli: Cli) -> None:
    text = bench.PAGE.read_text(encoding="utf-8")
    for name in ("engine", "passes", "worker", "aggregator", "store", "growth"):
        start, end = bench._within(text, name, bench.PAGE)
        assert 0 < start < end


def test_what_was_found_is_written_with_machine_and_versions(cli: Cli, page: Path) -> None:
    for _ in range(2):
        done = cli("bench", "quick", "--write", "--page", str(page), "--args", "--name 'two words'")
        assert done.code == 0, done.err
    text = page.read_text()
    assert "| way | texts/s | accuracy | range |" in text
    assert "| a\\|b | 12,346 |  |  |" in text
    assert "| peer |  |  | 1, 2.5 |" in text
    assert "| texts | 1,234 |" in text
    assert "| spread, least | 0.5123 |" in text
    assert "| args | --name two words |" in text
    assert "quick.py --name 'two words'`" in text
    assert "cores" in text
    assert "Python 3." in text
    assert "Load average" in text
    # Once, in its place; all else is as it was.
    assert text.count("| texts | 1,234 |") == 1
    assert text.count("old") == 2
    assert text.startswith("# Figures\n")
    assert text.endswith("\nThe rest.\n")


def test_what_is_no_json_is_written_as_it_is(cli: Cli, page: Path) -> None:
    assert cli("bench", "plain", "--write", "--page", str(page)).code == 0
    assert "```text\na table\nof two lines\n```" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("quack",), "There is no benchmark quack"),
        (("quick", "--args", "'open"), "cannot be read"),
        (("quick", "--write", "--page", "nowhere.md"), "nowhere.md cannot be read"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    cli: Cli, page: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = cli("bench", *arguments)
    assert done.code != 0
    assert told in " ".join(done.err.split())
    assert "==" not in done.err


def test_a_page_without_the_section_is_told_before_anything_is_measured(cli: Cli, page: Path) -> None:
    page.write_text("nothing here")
    done = cli("bench", "quick", "--write", "--page", str(page))
    assert done.code != 0
    assert "<!-- bench quick -->" in " ".join(done.err.split())
    assert page.read_text() == "nothing here"


def test_a_benchmark_that_fails_leaves_the_page_alone(cli: Cli, page: Path) -> None:
    before = page.read_text()
    assert cli("bench", "broken", "--write", "--page", str(page)).code == 7
    assert page.read_text() == before


def test_the_machine_is_described_by_what_makes_products_fast(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert described(info).startswith("Some CPU (avx2, avx512_vnni), ")
    assert "features unknown" in described(tmp_path / "none")
    assert versions().startswith("Python 3.")
