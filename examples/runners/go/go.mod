module example.com/in-a-guest

go 1.18
