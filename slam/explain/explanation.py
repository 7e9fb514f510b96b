"""Explanation of a run: its findings, its coverage over time, and its refused loops by gate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slam.events import EdgeAccepted, KeyframeAdded, LoopExamined
from slam.explain.finding import Finding
from slam.explain.image_faults import image_findings
from slam.explain.map_faults import map_findings
from slam.explain.motion_faults import motion_findings
from slam.explain.run_record import RunRecord, read_run
from slam.map.keyframe_graph import EdgeKind

PARTS = 40  # maximum number of parts of the run whose coverage is given


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Explanation:
    """What went wrong in a run, and what would help.

    Attributes:
        name: of the run folder.
        verdict, reasons: of the run.
        frames, keyframes: their numbers.
        coverage: fraction of the frames with a pose in each of `PARTS` equal parts of the run, in order.
        findings: in order of their first frame.
        remarks: what could not be examined, in sentences.
        loops_accepted: number of loops closed.
        refused: number of refused loop candidates by the gate that refused them, the most frequent first.
    """

    name: str
    verdict: str
    reasons: tuple[str, ...]
    frames: int
    keyframes: int
    coverage: tuple[float, ...]
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    loops_accepted: int
    refused: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "run": self.name,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "frames": self.frames,
            "keyframes": self.keyframes,
            "coverage": [round(share, 3) for share in self.coverage],
            "remarks": list(self.remarks),
            "findings": [finding.to_dict() for finding in self.findings],
            "loops": {"accepted": self.loops_accepted, "refused_by_gate": dict(self.refused)},
        }


def explain_run(folder: Path) -> Explanation:
    """Explain a finished run from the files of its folder.

    Raises:
        UserError: it is not a run folder, or a file in it cannot be read.
    """
    return explain(read_run(folder), folder.resolve().name)


def explain(record: RunRecord, name: str) -> Explanation:
    """Explain a run."""
    faults = [*image_findings(record), *motion_findings(record)]
    findings = sorted([*faults, *map_findings(record, faults)], key=lambda finding: (finding.first, finding.last))
    loops = record.of(LoopExamined)
    gates = [next((gate.name for gate in e.gates if not gate.passed), e.reason) for e in loops if not e.is_accepted]
    verdict = record.report.get("verdict") or {}
    return Explanation(
        name=name,
        verdict=str(verdict.get("grade") or record.report.get("status", "")),
        reasons=tuple(verdict.get("reasons") or ()),
        frames=len(record),
        keyframes=len(record.of(KeyframeAdded)),
        coverage=tuple(
            float(part.mean()) for part in np.array_split(record.has_pose, min(PARTS, len(record)) or 1) if len(part)
        ),
        findings=tuple(findings),
        remarks=_remarks(record),
        loops_accepted=len({(e.edge.i, e.edge.j) for e in record.of(EdgeAccepted) if e.edge.kind is EdgeKind.LOOP}),
        refused=dict(Counter(gates).most_common()),
    )


def _remarks(record: RunRecord) -> tuple[str, ...]:
    remarks = []
    if len(record) and not np.isfinite(record.measured["brightness"]).any():
        remarks.append("the run is of a version that measured no images: faults of images and motion are not seen")
    if record.report.get("status") == "running":
        remarks.append("the run did not end by itself: poses are those of its frames as they came")
    return tuple(remarks)
