"""python -m requirements.swagger_ui [VERSION]: put Swagger UI into app/docs, from its npm package.

npm compares the package with the hash that the registry has for it; what of it lies here, and from which package, is in
`source.json`. The two large files are compressed, as they are sent.
"""

import gzip
import json
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from requirements.__main__ import ROOT

FOLDER = ROOT / "app" / "docs" / "swagger-ui"
PACKAGE = "swagger-ui-dist"
SERVED = ("swagger-ui-bundle.js", "swagger-ui.css")
BESIDE = ("LICENSE", "NOTICE", "swagger-ui-bundle.js.LICENSE.txt")


def main() -> int:
    """Fetch the version that is named, else that which is here; the exit code."""
    source = FOLDER / "source.json"
    version = sys.argv[1] if len(sys.argv) > 1 else json.loads(source.read_text())["version"]
    with TemporaryDirectory() as folder:
        packed = fetch(f"{PACKAGE}@{version}", Path(folder))
        files = unpacked(Path(folder) / packed["filename"])
    FOLDER.mkdir(exist_ok=True)
    for name in SERVED:
        # Without a time: the same file makes the same bytes.
        (FOLDER / f"{name}.gz").write_bytes(gzip.compress(files[name], 9, mtime=0))
    for name in BESIDE:
        (FOLDER / name).write_bytes(files[name])
    hashes = {name: sha256(files[name]).hexdigest() for name in (*SERVED, *BESIDE)}
    told = {"package": PACKAGE, "version": packed["version"], "integrity": packed["integrity"], "sha256": hashes}
    source.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def fetch(package: str, folder: Path) -> dict[str, str]:
    """The package as a file in a folder, and what npm says of it."""
    command = ["npm", "pack", package, "--json", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    described: dict[str, str] = json.loads(done.stdout)[0]
    return described


def unpacked(package: Path) -> dict[str, bytes]:
    """The files that are needed of a package, by name."""
    with tarfile.open(package) as archive:
        found = {name: archive.extractfile(f"package/{name}") for name in (*SERVED, *BESIDE)}
        return {name: file.read() for name, file in found.items() if file is not None}


if __name__ == "__main__":
    sys.exit(main())
