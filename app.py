"""The dashboard: ``streamlit run app.py``."""

from pages.components import frame

# Workers started by spawn import this file again under another name.
if __name__ == "__main__":
    frame.show()
