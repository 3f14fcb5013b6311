"""The table of the audit log. No other table is touched."""

import django.db.models.functions
from django.db import migrations, models
from django.db.models import F


class Migration(migrations.Migration):
    dependencies = [("access", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="AuditEntry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField(db_default=django.db.models.functions.Now(), verbose_name="at")),
                ("action", models.CharField(max_length=40, verbose_name="action")),
                ("kind", models.CharField(max_length=16, verbose_name="kind")),
                ("object_id", models.CharField(blank=True, max_length=261, verbose_name="id")),
                ("owner_id", models.BigIntegerField(null=True, verbose_name="owner")),
                ("user_id", models.BigIntegerField(null=True, verbose_name="user id")),
                ("name", models.CharField(blank=True, max_length=254, verbose_name="by")),
                ("key", models.CharField(blank=True, max_length=64, verbose_name="key")),
                ("address", models.CharField(blank=True, max_length=45, verbose_name="address")),
                ("through", models.CharField(blank=True, max_length=16, verbose_name="through")),
                ("request_id", models.CharField(blank=True, max_length=128, verbose_name="request id")),
                ("before", models.JSONField(null=True, verbose_name="before")),
                ("after", models.JSONField(null=True, verbose_name="after")),
            ],
            options={"verbose_name": "audit entry", "verbose_name_plural": "audit entries"},
        ),
        migrations.AddIndex(
            model_name="auditentry",
            index=models.Index(F("kind"), F("object_id"), F("id").desc(), name="audit_object_idx"),
        ),
        migrations.AddIndex(
            model_name="auditentry",
            index=models.Index(F("owner_id"), F("id").desc(), name="audit_owner_idx"),
        ),
    ]
