"""MLflow's server as `transloom ui` runs it: without its assistant's API. That writes files and runs commands as the
server's user, for whoever reaches the port on this machine, and asks for no login; MLflow has no setting that turns it
off. `mlflow server --app-name transloom` finds `app` through the entry point in pyproject.toml.
"""

from mlflow.server.fastapi_app import app as mlflow_app
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

ASSISTANT = "/mlflow/assistant"


class WithoutAssistant:
    """Answers 404 in the assistant's place, and passes everything else on."""

    def __init__(self, served: ASGIApp) -> None:
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_assistants = ASSISTANT in scope.get("path", "").lower()
        await (PlainTextResponse("Not found", 404) if is_assistants else self._served)(scope, receive, send)


app = WithoutAssistant(mlflow_app)
