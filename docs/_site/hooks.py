"""What MkDocs does beside Markdown, without a network: mathematics, and links that leave `docs/`.

Formulas become MathML when the site is built; browsers draw it themselves. The tables of
`benchmarks/results` are pages of the site. Other files of the repository are links to its address.
"""

import html
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RESULTS = "benchmarks/results"
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.S)
_LINK = re.compile(r"(!?\[[^\]]*\]\()(?!\w+:|#)([^)#\s]+)")
_FENCE = re.compile(r"(^```.*?^```$)", re.S | re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tables and pictures of the benchmarks to the site."""
    for path in sorted((ROOT / RESULTS).iterdir()):
        name = f"{RESULTS}/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links from a page to what lies outside of `docs/`."""
    here = page.file.src_uri
    of_docs = not here.startswith(RESULTS)
    folder = posixpath.dirname(f"docs/{here}" if of_docs else here)

    def rewritten(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        known = target.removeprefix("docs/")
        if files.get_file_from_path(known):
            return link[1] + posixpath.relpath(known, posixpath.dirname(here) or ".")
        if (ROOT / target).exists():
            return f"{link[1]}{config.repo_url}/blob/main/{target}"
        return link[0]  # MkDocs says that it leads nowhere

    parts = _FENCE.split(markdown)
    return "".join(p if i % 2 else _LINK.sub(rewritten, p) for i, p in enumerate(parts))


def on_page_content(content: str, **kwargs: object) -> str:
    """Turn LaTeX into MathML."""

    def drawn(found: re.Match) -> str:
        formula = html.unescape(found[3]).strip()
        return convert(formula, display="block" if found[2] == "[" else "inline")

    return _FORMULA.sub(drawn, content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Leave out what makes a reader's browser ask GitHub for the stars of the repository."""
    return output.replace(' data-md-component="source"', "")
