//! Guests that several modules run.

use crate::{guest, halt, never, outb, power_off, say};

guest!(HELLO, say!(r"Hello from a tiny guest\r\n"), power_off!(), never!(),);
guest!(SPIN, say!("up"), "2: jmp 2b",);
guest!(HALT, say!("up"), halt!(),);
guest!(SPAM, "mov dx, 0x3f8; mov al, 'x'; 2: out dx, al; jmp 2b",);
guest!(EXIT_7, outb!("0xf4", "7"),);
guest!(TOUCH, outb!("0x700", "1"), never!(),);
