"""What is asked for with GET, described: health, figures, and this description."""

from prometheus_client import CONTENT_TYPE_LATEST

from app.description.nodes import ANYWHERE, JSON, Node, answer, get, json_answer
from app.description.problems import problems

TAG = "Operation"


def operations() -> dict[str, Node]:
    """By path."""
    ready = json_answer("It can.", "Readiness")
    unready = json_answer("It cannot: it starts, drains or has lost all.", "Readiness")
    figures = answer("All of them.", {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}})
    document = answer("OpenAPI 3.1.", {JSON: {"schema": {"type": "object", "required": ["openapi"]}}})
    return {
        "/healthz": _get("health", "Is the process there?", {200: json_answer("It is.", "Aliveness")}),
        "/readyz": _get("readiness", "Can it make pictures now?", {200: ready, 503: unready}),
        "/metrics": _get("metrics", "Figures for Prometheus.", {200: figures}),
        "/openapi.json": _get("description", "This description.", {200: document}),
    }


def _get(name: str, summary: str, answers: dict[int, Node]) -> Node:
    return {"get": get(name, TAG, summary, answers, problems(ANYWHERE))}
