"""`audit.junit.xml`: the audit as a test suite, as continuous integration shows it."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from unforgotten.audit.outputs.result import AuditResult

SUITE = "unforgotten.audit"


def render_junit(result: AuditResult) -> str:
    """Render one test case for the verdict and one a finding.

    "undone" and findings of severity "error" are failures, "undecided" is skipped, and all else passes with its
    sentence as output. The properties bind the suite to the SHA-256 of both checkpoints.
    """
    suite = ET.Element("testsuite", name=SUITE, errors="0")
    properties = ET.SubElement(suite, "properties")
    for side, source in (("target", result["target"]), ("unlearned", result["unlearned"])):
        ET.SubElement(properties, "property", name=side, value=source["source"])
        ET.SubElement(properties, "property", name=f"{side}.sha256", value=source["sha256"])
    ET.SubElement(properties, "property", name="control", value=result["control"]["sentence"])
    overall, reasons = result["verdict"]["overall"], "\n".join(result["verdict"]["reasons"])
    case = ET.SubElement(suite, "testcase", classname=SUITE, name="verdict")
    if overall == "undone":
        ET.SubElement(case, "failure", message=f"verdict: {overall}", type="undone").text = reasons
    elif overall == "undecided":
        ET.SubElement(case, "skipped", message=f"verdict: {overall}").text = reasons
    else:
        ET.SubElement(case, "system-out").text = reasons
    for row in result["findings"]:
        name = " ".join(filter(None, (row["id"], row["format"], row["tensor"])))
        case = ET.SubElement(suite, "testcase", classname=f"{SUITE}.findings", name=name)
        if row["severity"] == "error":
            failure = ET.SubElement(case, "failure", message=row["sentence"], type=row["id"])
            failure.text = row["sentence"]
        else:
            ET.SubElement(case, "system-out").text = row["sentence"]
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    for element in suite.iter():
        _make_printable(element)
    ET.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suite, "unicode") + "\n"


def _make_printable(element: ET.Element) -> None:
    """Escape control characters, which XML 1.0 does not hold and names of tensors and files may."""
    element.text = None if element.text is None else _printable(element.text)
    for key, value in element.attrib.items():
        element.set(key, _printable(value))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
