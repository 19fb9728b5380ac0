"""What `make docs` does beside mkdocs: pages from the top of the repository, links to sources, a full navigation."""

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TOP = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}  # pages that people expect at the top
_LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
log = logging.getLogger("mkdocs.hooks")  # a warning here ends a strict build


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave pages out of the navigation that are not there, and put those at its end that it does not name."""
    here = {path.name for path in Path(config.docs_dir).glob("*.md")} | set(TOP.values())
    sections = [entry for entry in config.nav if isinstance(entry, dict)]
    for section in sections:
        for pages in section.values():
            pages[:] = [page for page in pages if _file(page) in here]
    named = {_file(page) for section in sections for pages in section.values() for page in pages} | {"index.md"}
    rest = sorted(here - named)
    config.nav += [{"More": rest}] if rest else []
    return config


def _file(entry: str | dict[str, str]) -> str:
    """The page of an entry of the navigation, which may have a title of its own."""
    return entry if isinstance(entry, str) else next(iter(entry.values()))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages from the top of the repository."""
    for source, page in TOP.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_LINK.sub(lambda found: _link(found, ROOT), text)))
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """A link to a source of the repository keeps its words; that the source exists is checked."""
    if page.file.src_uri in TOP.values():
        return markdown
    return _LINK.sub(lambda found: _link(found, ROOT / "docs"), markdown)


def _link(found: re.Match, folder: Path) -> str:
    """The link as the site has it, from a page in ``folder``."""
    words, target, anchor = found[1], found[2], found[3] or ""
    path = (folder / target).resolve()
    if not path.exists():
        log.warning("the link [%s](%s) leads nowhere", words, target)
    if path.parent == ROOT and path.name in TOP:
        return f"[{words}]({TOP[path.name]}{anchor})"
    if path.parent == ROOT / "docs" and path.suffix == ".md":
        return f"[{words}]({path.name}{anchor})"
    return found[0] if ROOT / "docs" in path.parents else words
