"""Makes room for second factors that are encrypted.

The two tables are django-otp's. Longer text is allowed in one column of each, which rewrites nothing and reads nothing,
whatever the tables hold. No row is changed: web processes of the release before, which may still run, read the
rows that there are. `manage.py rotate_encryption` encrypts them, once no such process runs.
"""

from django.db import migrations

# It waits for the transaction of whoever is logging in, and no longer.
WIDEN = """
ALTER TABLE otp_totp_totpdevice ALTER COLUMN key TYPE varchar(255);
ALTER TABLE otp_static_statictoken ALTER COLUMN token TYPE varchar(255);
"""


class Migration(migrations.Migration):
    dependencies = [
        ("users", "0003_login_failures"),
        ("otp_totp", "0003_add_timestamps"),
        ("otp_static", "0003_add_timestamps"),
    ]

    operations = [
        # Back, there would be no room for what is encrypted: the columns stay wide.
        migrations.RunSQL(WIDEN, migrations.RunSQL.noop),
        migrations.CreateModel(
            name="AppDevice",
            fields=[],
            options={
                "verbose_name": "authenticator app",
                "proxy": True,
                "default_permissions": (),
                "indexes": [],
                "constraints": [],
            },
            bases=("otp_totp.totpdevice",),
        ),
        migrations.CreateModel(
            name="RecoveryDevice",
            fields=[],
            options={
                "verbose_name": "recovery codes",
                "proxy": True,
                "default_permissions": (),
                "indexes": [],
                "constraints": [],
            },
            bases=("otp_static.staticdevice",),
        ),
    ]
