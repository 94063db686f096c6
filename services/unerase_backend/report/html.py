"""x"""
def render_html(report, read_picture): return ""
