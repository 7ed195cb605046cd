"""What the pages share: the workspace, the URL, errors, jobs, charts and policies."""
