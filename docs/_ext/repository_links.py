"""Links of the pages that leave docs/, as they are right on the repository's host, for the site.

README.md, CHANGELOG.md, SECURITY.md and checkpoints/README.md are pages of the site too, by an include; links to other
files of the repository become their names in code.
"""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[2]
#: file of the repository -> page of the site
PAGES = {
    "README.md": "index",
    "CHANGELOG.md": "changes",
    "SECURITY.md": "security",
    "CONTRIBUTING.md": "contributing",
    "checkpoints/README.md": "checkpoints",
}


class RepositoryLinks(SphinxTransform):
    """Point links to files outside docs/ at their page; where there is none, keep the text only."""

    default_priority = 5

    def apply(self, **kwargs: object) -> None:
        for node in list(self.document.findall(addnodes.pending_xref)) + list(
            self.document.findall(addnodes.download_reference)
        ):
            target = str(node.get("reftarget", "")).partition("#")[0]
            if "/" not in target and not target.endswith(".md"):
                continue
            document = Path(self.env.doc2path(self.env.docname))
            file = self._resolve(document.parent, target)
            if file is None:
                continue
            page = PAGES.get(file)
            if page:
                node.replace_self(self._reference(page, node))
            elif not file.startswith("docs/"):
                node.replace_self(nodes.inline("", "", *node.children))
            elif file.endswith(".md") and not (document.parent / target).exists():
                # An included page has links relative to the folder of the file, not of the page that includes it.
                node.replace_self(self._reference(file.removeprefix("docs/").removesuffix(".md"), node))

    def _reference(self, page: str, node: nodes.Element) -> nodes.Element:
        xref = addnodes.pending_xref(
            "", refdomain="std", reftype="doc", reftarget="/" + page, refexplicit=True, refdoc=self.env.docname
        )
        xref += nodes.inline("", "", *node.children, classes=["doc"])
        return xref

    def _resolve(self, folder: Path, target: str) -> str | None:
        """Return the path in the repository of the file that a link names, None if there is none."""
        # MyST makes a link to Markdown outside docs/ an absolute path without its suffix.
        if target.startswith(f"{ROOT.as_posix()}/") and Path(f"{target}.md").is_file():
            return Path(f"{target}.md").relative_to(ROOT).as_posix()
        if target.startswith("/"):
            candidate = ROOT / "docs" / target[1:]
            return candidate.resolve().relative_to(ROOT).as_posix() if candidate.exists() else None
        for base in (folder, ROOT, ROOT / "checkpoints"):
            candidate = (base / target).resolve()
            if candidate.exists() and candidate.is_relative_to(ROOT):
                return candidate.relative_to(ROOT).as_posix()
        return None


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(RepositoryLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
