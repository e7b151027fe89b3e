"""Reports for people: tables, charts, HTML, the model card."""
