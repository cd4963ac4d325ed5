"""One self-contained HTML report per comparison."""
