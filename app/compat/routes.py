"""The paths of all of these interfaces."""

from collections.abc import Sequence

from starlette.routing import Route

from app.access import Access
from app.compat.automatic.service import Service
from app.compat.openai.images import Images
from app.compat.openai.models import Models
from app.edges import EdgeFinder
from app.generator import ImageGenerator
from app.lifecycle import RequestLifecycle
from app.metrics import Metrics
from app.settings import Settings


def routes(
    lifecycle: RequestLifecycle,
    access: Access,
    generator: ImageGenerator,
    finder: EdgeFinder,
    metrics: Metrics,
    settings: Settings,
) -> Sequence[Route]:
    """With what answers them."""
    models = Models(lifecycle, access, settings.server.model_name)
    images = Images(lifecycle, access, generator, finder, models)
    return [
        *models.routes(),
        *images.routes(),
        *Service(lifecycle, access, generator, finder, metrics, settings).routes(),
    ]
