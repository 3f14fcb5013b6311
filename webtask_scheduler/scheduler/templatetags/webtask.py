"""What every page of the admin says of the service."""

from django import template

from webtask_scheduler.scheduler import facts

register = template.Library()


@register.simple_tag
def service_warnings() -> list[str]:
    """Return what keeps timers from being called at present, in sentences."""
    return facts.warnings()
