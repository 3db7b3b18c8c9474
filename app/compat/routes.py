"""The paths of all of these interfaces."""

from collections.abc import Sequence

from starlette.routing import Route

from app.access import Access
from app.compat.automatic.service import Service
from app.compat.openai.images import Images
from app.compat.openai.models import Models
from app.desk import Desk
from app.edges import EdgeFinder
from app.making import Maker
from app.metrics import Metrics
from app.settings import Settings


def routes(
    desk: Desk, access: Access, maker: Maker, finder: EdgeFinder, metrics: Metrics, settings: Settings
) -> Sequence[Route]:
    """With what answers them."""
    models = Models(desk, access, settings.server.model_name)
    images = Images(desk, access, maker, finder, models)
    return [*models.routes(), *images.routes(), *Service(desk, access, maker, finder, metrics, settings).routes()]
