"""The log-in of people who are no staff: the admin's, with its throttle and second factor, but for every account."""

from typing import Any

from django.conf import settings
from django.contrib.auth import views
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _

from webtask_scheduler.dashboard.frame import frame
from webtask_scheduler.users.site import MemberLogInForm, log_in_answered


class LogIn(views.LoginView):
    authentication_form = MemberLogInForm
    template_name = "dashboard/login.html"
    next_page = "dashboard:overview"

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        answer = super().post(request, *args, **kwargs)
        return log_in_answered(request, answer, path=request.path)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        shown = frame(self.request, title=_("Log in"), at="login")
        return super().get_context_data(**kwargs, **shown, second_factor=settings.ADMIN_SECOND_FACTOR != "off")


class LogOut(views.LogoutView):
    next_page = "dashboard:overview"
