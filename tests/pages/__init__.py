"""Pages through Streamlit's own test driver."""
