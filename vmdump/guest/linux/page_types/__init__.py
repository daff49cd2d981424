"""What each page of a guest is used for, by its Linux kernel's struct pages; and dumps without some types."""
