"""The section of the benchmarks that a machine with a GPU rewrites: nothing else of the page changes."""

from benchmarks import gpu_epochs


def test_only_the_section_is_rewritten(tmp_path, monkeypatch):
    page = tmp_path / "RESULTS.md"
    whole = gpu_epochs.RESULTS.read_text(encoding="utf-8")
    page.write_text(whole, encoding="utf-8")
    monkeypatch.setattr(gpu_epochs, "RESULTS", page)
    before = gpu_epochs.recorded()
    assert "## " not in before
    new = "A card.\n\n| M | ms |\n| --- | ---: |\n| 1 | 2 |"
    for text in (new, "Shorter."):
        gpu_epochs._record(text)
        assert gpu_epochs.recorded() == text
        assert page.read_text(encoding="utf-8") == whole.replace(before, text)


def test_the_section_may_be_the_last_one(tmp_path, monkeypatch):
    page = tmp_path / "RESULTS.md"
    page.write_text(f"# Benchmarks\n\n{gpu_epochs.HEADING}\n\nNot measured.\n", encoding="utf-8")
    monkeypatch.setattr(gpu_epochs, "RESULTS", page)
    gpu_epochs._record("Measured.")
    assert page.read_text(encoding="utf-8") == f"# Benchmarks\n\n{gpu_epochs.HEADING}\n\nMeasured.\n"
