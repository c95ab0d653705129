"""The sections of the page: what each shows, made of what contents.py read; report.html.j2 and its parts lay it out."""
