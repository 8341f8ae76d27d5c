//! Guests that several test modules run.

use crate::{guest, halt, never, outb, power_off, print_serial};

guest!(HELLO, print_serial!(r"Hello from a tiny guest\r\n"), power_off!(), never!(),);
guest!(SPIN, print_serial!("up"), "2: jmp 2b",);
guest!(HALT, print_serial!("up"), halt!(),);
guest!(SPAM, "mov dx, 0x3f8; mov al, 'x'; 2: out dx, al; jmp 2b",);
guest!(EXIT_7, outb!("0xf4", "7"),);
guest!(TOUCH, outb!("0x700", "1"), never!(),);
