def write_page(page, folder):
    return ""
