"""What a server answers before any other middleware: probes under every name, and nothing unsafe over plain HTTP."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils.translation import get_language_from_request, override
from django.utils.translation import gettext as _

from webtask_scheduler.scheduler.api import probes
from webtask_scheduler.scheduler.api.problems import problem_answer

Handler = Callable[[HttpRequest], HttpResponse]

_PROBES: dict[str, Handler] = {"/healthz": probes.healthz, "/readyz": probes.readyz}
_SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")


class Probes:
    """Answers the probes whatever Host they were sent to and whether by HTTPS or not.

    A container's health check asks for localhost, Kubernetes and load balancers for an address that changes. None of
    these names belongs into ALLOWED_HOSTS, and an answer of a probe contains no link that a forged name could reach.
    """

    def __init__(self, get_response: Handler) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return _PROBES.get(request.path_info, self._get_response)(request)


class HttpsOnly:
    """Refuses a request over plain HTTP that may change something; Django redirects the others.

    Many clients repeat a redirected POST as a GET, and its secrets have crossed the network unencrypted by then. A
    refusal shows its sender the mistake at the first try.
    """

    def __init__(self, get_response: Handler) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.method in _SAFE or request.is_secure() or not settings.SECURE_SSL_REDIRECT:
            return self._get_response(request)
        with override(get_language_from_request(request)):
            detail = _(
                "This service takes %(method)s over HTTPS only, and it did nothing. Send the request to the https://"
                " address. If it held a key or a password, replace that: it crossed the network unencrypted."
            ) % {"method": request.method}
            return problem_answer(403, detail)
