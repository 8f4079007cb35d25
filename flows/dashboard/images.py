"""The dashboard's pictures: photographs, rejects, curves; a placeholder says why one cannot be shown."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import wrap

from markupsafe import escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cutline.schemas.errors import BadPhoto, CutlineError, DamagedFile
from cutline.schemas.safe_text import written_out
from cutline.tasks.report.curves import draw_curve, draw_joint_embedding_curve
from cutline.tasks.report.photo_files import Pictures, is_photo_id
from cutline.tasks.storage.runs import CURVES, History

SIZES_PX = {"small": 320, "large": 1024}
REJECT_PX = 200
# Bytes that an id names never change; the browser need not ask again.
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
# matplotlib styles its drawing inline; opened by itself it may still do nothing.
DRAWING = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}

Endpoint = Callable[[Request], Response]


def photo(history: History, pictures: Pictures) -> Endpoint:
    """A photograph by its run and id."""

    def answer(request: Request) -> Response:
        run, photo_id, size = (request.path_params[name] for name in ("run", "photo_id", "size"))
        if size not in SIZES_PX or not is_photo_id(photo_id):
            raise HTTPException(404, "there is no such picture")
        return _jpeg(lambda: pictures.photo(history.run(run), photo_id, SIZES_PX[size]))

    return answer


def rejected(history: History, pictures: Pictures) -> Endpoint:
    """A rejected file by its run and row of the rejects table."""

    def answer(request: Request) -> Response:
        run, row = request.path_params["run"], request.path_params["row"]
        if row >= 2**32:
            raise HTTPException(404, "there is no such picture")
        # The row says beside it what is wrong with the file.
        return _jpeg(lambda: pictures.reject(history.run(run), row, REJECT_PX), lambda _: crossed())

    return answer


def curve(history: History) -> Endpoint:
    """A training's curve, drawn."""

    def answer(request: Request) -> Response:
        run, stage = request.path_params["run"], request.path_params["stage"]
        try:
            table = history.curves(history.run(run))[stage]
            draw = draw_joint_embedding_curve if CURVES[stage] == "joint_embedding_curve" else draw_curve
            drawn = draw(table, stage.capitalize().replace("_", " "))
            return Response(drawn, media_type="image/svg+xml", headers=DRAWING | FOREVER)
        except KeyError:
            raise HTTPException(404, "there is no such curve") from None
        except DamagedFile as error:
            return placeholder(str(error))

    return answer


def _jpeg(make: Callable[[], bytes], instead: Callable[[str], Response] | None = None) -> Response:
    instead = instead or placeholder
    try:
        return Response(make(), media_type="image/jpeg", headers=FOREVER)
    except KeyError:
        raise HTTPException(404, "there is no such picture") from None
    except BadPhoto as error:
        return instead(f"{error.reason.replace('_', ' ')}: {error.detail}")
    except CutlineError as error:
        return instead(str(error))


def crossed() -> Response:
    """A drawing that says that there is no picture."""
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="72" height="72" viewBox="0 0 72 72">'
        "<style>path{stroke:#85858b}</style><path d='M18 18l36 36M54 18L18 54'/></svg>"
    )
    return Response(drawing, media_type="image/svg+xml", headers=DRAWING)


def placeholder(reason: str) -> Response:
    """A drawing that says why there is no picture."""
    lines = wrap(written_out(reason), 30)[:6]
    text = "".join(
        f'<text x="160" y="{128 - 9 * len(lines) + 20 * number}">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="320" height="240" viewBox="0 0 320 240" role="img">'
        f"<title>{escape(written_out(reason))}</title>"
        "<style>rect{fill:#eceae4}text{fill:#5c5d63}"
        "@media (prefers-color-scheme:dark){rect{fill:#26282e}text{fill:#b3b1aa}}</style>"
        '<rect width="320" height="240"/>'
        f'<g font-family="system-ui,sans-serif" font-size="15" text-anchor="middle">{text}</g></svg>'
    )
    return Response(drawing, media_type="image/svg+xml", headers=DRAWING)
