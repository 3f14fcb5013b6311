"""The minimal view's application, where the service has config.rsgi."""

from django.core.wsgi import get_wsgi_application

from config.front import Front

application = Front(get_wsgi_application())
