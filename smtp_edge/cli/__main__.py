"""`python -m smtp_edge.cli`"""

from smtp_edge.cli import main

if __name__ == "__main__":
    main()
