"""Pages of the site that are made when it is built: the shell's reference from the shell, the library's from its
modules, the gallery by running its scripts, and the Markdown files that lie outside docs/.

MkDocs calls the functions whose names begin with on_ (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Where files outside docs/ stand in the site; their links to each other go on working.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "fastprobe/tables/data/DEMO.md": "demo-data.md",
    **{f"benchmarks/results/{name}.md": f"benchmarks/results/{name}.md" for name in ("cpu", "retrieval", "aot")},
}
WINGS = ("tables", "protocol", "kernels", "statistics", "runs", "retrieval", "extract", "report")


def on_files(files, config):
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text("utf-8")))
    files.append(File.generated(config, "shell.md", content=shell_page()))
    files.append(File.generated(config, "api/index.md", content=library_page()))
    for wing in WINGS:
        files.append(File.generated(config, f"api/{wing}.md", content=wing_page(wing)))
    page, images = gallery_page()
    files.append(File.generated(config, "gallery.md", content=page))
    for name, data in images.items():
        files.append(File.generated(config, f"images/gallery/{name}", content=data))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links of the repository into links of the site."""
    here = Path(page.file.src_uri)
    source = next((s for s, t in OUTSIDE.items() if t == page.file.src_uri), f"docs/{page.file.src_uri}")

    def moved(found):
        target, anchor = found.group(2), found.group(3) or ""
        if re.match(r"[a-z]+:|/", target):
            return found.group(0)
        path = os.path.normpath(Path(source).parent / target)
        place = OUTSIDE.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is None:
            return found.group(0)
        return f"{found.group(1)}({Path(os.path.relpath(place, here.parent)).as_posix()}{anchor})"

    return re.sub(r"(\])\(([^)#\s]+)(#[^)\s]*)?\)", moved, markdown)


# ---- the shell -----------------------------------------------------------------------------------


def shell_page() -> str:
    """Every command with its arguments and options, as the shell declares them."""
    import typer
    import typer.main

    from fastprobe.cli.app import app

    def commands(command, path):
        inner = getattr(command, "commands", None)
        if inner:
            for name, child in inner.items():
                yield from commands(child, f"{path} {name}")
        else:
            yield path, command

    lines = ["# The shell", "", "Made from the shell itself; `fastprobe COMMAND --help` says the same.", ""]
    for path, command in commands(typer.main.get_command(app), "fastprobe"):
        context = typer.Context(command, info_name=path)
        usage = " ".join([path, *command.collect_usage_pieces(context)])
        lines += [f"## {path}", "", f"    {usage}", "", command.help or "", ""]
        lines += ["Example:", "", f"    {command.epilog.removeprefix('Example: ')}", ""]
        panels: dict[str, list] = {}
        for parameter in command.params:
            if not getattr(parameter, "hidden", False):
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or "", []).append(parameter)
        for title, parameters in panels.items():
            lines += [f"**{title}**", ""] if title else []
            lines += ["| option | what it does |", "| --- | --- |"]
            lines += [row(p, context) for p in parameters]
            lines += [""]
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;").strip()


def row(parameter, context) -> str:
    """An option with its default, as the help of its command has them."""
    if parameter.param_type_name == "argument":
        return f"| `{parameter.name.upper()}`{' (required)' if parameter.required else ''} | {cell(parameter.help or '')} |"
    shown, words = parameter.get_help_record(context)
    words, _, default = words.partition("[default: ")
    words, required, _ = words.partition("[required]")
    default = re.sub(r"^\((.*)\)$", r"\1", default.strip().removesuffix("]"))
    flags, _, values = shown.partition(" <")
    # "<float>,..." takes several values, each of which makes cells.
    several = values.endswith(">,...")
    values = cell(values.removesuffix(",...").removesuffix(">").replace("|", " or "))
    values = re.sub(r"^list\[(.*)\]$", r"\1", values) + (", one or several" if several else "")
    words = cell(words) + (f" *Default: {cell(default)}.*" if default else "") + (" **Required.**" if required else "")
    return f"| `{flags}` {values} | {words} |"


# ---- the library ---------------------------------------------------------------------------------


def library_page() -> str:
    """The names that `import fastprobe` offers."""
    import fastprobe

    lines = ["# The library", "", "`import fastprobe as fp` offers these names; the wings hold the rest.", ""]
    for name, module in fastprobe._NAMES.items():
        lines += [f"::: fastprobe.{module}.{name}", ""]
    lines += ["::: fastprobe.kernels.contrastive_loss", ""]
    return "\n".join(lines)


def wing_page(wing: str) -> str:
    """Public names of a wing's modules."""
    import fastprobe

    offered = {f"{module}.{name}" for name, module in fastprobe._NAMES.items()} | {"kernels.contrastive_loss"}
    folder = ROOT / "fastprobe" / wing
    found = pkgutil.walk_packages([str(folder)], f"{wing}.")
    modules = [wing, *sorted(m.name for m in found if not m.name.split(".")[-1].startswith("_"))]
    lines = [f"# fastprobe.{wing}", ""]
    for module in modules:
        path = ROOT / "fastprobe" / Path(*module.split("."))
        tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))
        members = [
            node.name
            for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and ast.get_docstring(node)
        ]
        members = [name for name in members if f"{module}.{name}" not in offered]
        if module == wing:
            lines += [ast.get_docstring(tree) or "", ""]
        elif members:
            lines += [f"## {module.split('.', 1)[1]}", "", ast.get_docstring(tree) or "", ""]
        for name in members:
            lines += [f"::: fastprobe.{module}.{name}", ""]
    return "\n".join(lines)


# ---- the gallery ---------------------------------------------------------------------------------


def gallery_page() -> tuple[str, dict[str, bytes]]:
    """Every script of examples/gallery with what it printed and drew, and the drawings.

    Raises
    ------
    RuntimeError
        A script that fails or takes longer than 20 s.
    """
    scripts = sorted((ROOT / "examples" / "gallery").glob("*.py"), key=lambda p: (p.name != "first_test.py", p.name))
    lines = ["# Gallery", "", "Short scripts from `examples/gallery/`, run when this page was built, with what they printed.", ""]
    images = {}
    for script in scripts:
        code = script.read_text("utf-8")
        title, _, text = (ast.get_docstring(ast.parse(code)) or script.stem).partition("\n")
        body = code.split('"""', 2)[2].strip()
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "svg"}
            try:
                done = subprocess.run(
                    [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=20, check=True
                )
            except subprocess.SubprocessError as error:
                raise RuntimeError(f"{script.name}: {error}\n{getattr(error, 'stderr', '') or ''}") from None
            drawn = {p.name: p.read_bytes() for p in sorted(Path(folder).glob("*.svg"))}
        images |= drawn
        lines += [f"## {title.rstrip('.')}", "", text.strip(), "", f"`examples/gallery/{script.name}`", ""]
        lines += ["```python", body, "```", "", "```{.text .gallery-output}", done.stdout.rstrip(), "```", ""]
        lines += [f"![{title}](images/gallery/{name}){{.plot}}" for name in drawn] + [""]
    for notebook in sorted((ROOT / "examples" / "gallery").glob("*.ipynb")):
        lines += [notebook_section(notebook), "", f"`examples/gallery/{notebook.name}`", ""]
    return "\n".join(lines), images


def notebook_section(path: Path) -> str:
    """A notebook as it was executed and stored, its title one level down. `tests/test_docs.py` executes it again."""
    from nbconvert import MarkdownExporter

    text, _ = MarkdownExporter().from_filename(str(path))
    return re.sub(r"^# ", "## ", text, count=1, flags=re.MULTILINE)
