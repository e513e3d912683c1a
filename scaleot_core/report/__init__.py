"""What a run found: the JSON document with stable keys, a table for a terminal, a page for a browser.

A run fills ``Report``; ``print_table`` shows it and ``write_report`` saves it.
"""

from scaleot_core.report.document import (
    Report,
    ReportedBundle,
    ReportedEmulator,
    ReportedFederation,
    ReportedLayer,
    ReportedPrivacy,
    ReportedRound,
    Results,
    StageSeconds,
)
from scaleot_core.report.model_privacy import NotMeasured, ReportedAttacks, ReportedDisclosure, ReportedModelPrivacy
from scaleot_core.report.page import PAGE_FILE, REPORT_FILE, write_report
from scaleot_core.report.table import print_table

__all__ = [
    "PAGE_FILE",
    "REPORT_FILE",
    "NotMeasured",
    "Report",
    "ReportedAttacks",
    "ReportedBundle",
    "ReportedDisclosure",
    "ReportedEmulator",
    "ReportedFederation",
    "ReportedLayer",
    "ReportedModelPrivacy",
    "ReportedPrivacy",
    "ReportedRound",
    "Results",
    "StageSeconds",
    "print_table",
    "write_report",
]
