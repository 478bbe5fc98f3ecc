//! Bytes as the characters of a byte-level vocabulary, and back.

/// Whether GPT-2's `bytes_to_unicode` keeps a byte as the character with its number.
fn printable(b: u32) -> bool {
    (0x21..=0x7E).contains(&b) || (0xA1..=0xAC).contains(&b) || (0xAE..=0xFF).contains(&b)
}

/// The character that stands for each byte in a byte-level vocabulary; the 68 others are numbered from U+0100 on, in their own order.
pub fn characters() -> [char; 256] {
    let mut hidden = 0x100;
    std::array::from_fn(|byte| {
        let own = printable(byte as u32);
        let code = if own { byte as u32 } else { hidden };
        hidden += u32::from(!own);
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    })
}

/// The byte that each of the first characters of Unicode stands for, where it stands for one.
pub fn bytes() -> [Option<u8>; 0x144] {
    let mut table = [None; 0x144];
    for (byte, c) in (0..=255_u8).zip(characters()) {
        if let Some(place) = table.get_mut(c as usize) {
            *place = Some(byte);
        }
    }
    table
}

/// The bytes of a token of a byte-level vocabulary; a character that stands for no byte is itself.
pub fn of_token(token: &str, table: &[Option<u8>; 0x144]) -> Box<[u8]> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match table.get(c as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            None => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let all = characters();
        assert_eq!((all[b'A' as usize], all[b' ' as usize], all[b'\n' as usize]), ('A', 'Ġ', 'Ċ'));
        let every: Vec<u8> = (0..=255).collect();
        let token: String = all.iter().collect();
        assert_eq!(*of_token(&token, &bytes()), every);
        assert_eq!(*of_token("日", &bytes()), *"日".as_bytes());
    }
}
