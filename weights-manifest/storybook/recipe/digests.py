"""Renews the digests in the manifest, after files such as calibration tables were added to the model's folder."""

import hashlib
from pathlib import Path

HERE = Path(__file__).resolve().parent


def digests(folder: Path) -> str:
    """The manifest's lines of a folder's files: sha256 by path within the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return "\n".join(f'"{p.relative_to(folder)}" = "{hashlib.sha256(p.read_bytes()).hexdigest()}"' for p in files)


if __name__ == "__main__":
    manifest = HERE.parents[1] / "storybook.toml"
    head = manifest.read_text().split("[files]\n")[0]
    manifest.write_text(f"{head}[files]\n{digests(HERE.parent / 'model')}\n")
