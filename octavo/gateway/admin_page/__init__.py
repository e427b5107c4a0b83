"""The admin page: `/admin`, files without a build step, for a browser that has an admin key."""
