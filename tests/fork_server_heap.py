"""What the fork server imports last: its children neither look through what it has imported nor copy it for that."""

from frozen_imports import freeze_imports

freeze_imports()
