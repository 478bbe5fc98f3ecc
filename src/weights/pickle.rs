//! Python's pickle format as data: what PyTorch's `.pt` files and nanoGPT's `meta.pkl` are written in.
//!
//! A pickle is a program. This reader knows only its instructions that build data; a call of a function is kept as a
//! description of the call, and nothing is ever called. Values live in one list and refer to each other by number, so
//! that depth, sharing and cycles cost no more memory or stack than the file is long.

use std::collections::HashMap;
use std::path::Path;

use crate::error::{Error, Result, shorten};

/// Largest pickle that is read. GPT-2 XL's with its optimizer state has about 1 MB.
pub const MAX_BYTES: u64 = 64 << 20;

/// The number of a value.
pub type Id = usize;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Text(String),
    /// Bytes; also an integer of more than 64 bits, which no weights need.
    Bytes(Vec<u8>),
    /// A tuple or a list.
    List(Vec<Id>),
    /// A dictionary in the order of the file, an `OrderedDict` too.
    Dict(Vec<(Id, Id)>),
    /// A function or class by `module.name`.
    Global(String),
    /// What a function would have been called with.
    Call {
        /// A [`Value::Global`].
        function: Id,
        /// A [`Value::List`].
        arguments: Id,
    },
    /// A reference to something outside the pickle; PyTorch's storages.
    Persistent(Id),
}

/// A pickle that was read: its values, and which of them it is.
#[derive(Debug)]
pub struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Reads a pickle of protocol 2 to 5; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Data`] for anything but data, with the offset.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        Ok(Self::parse_first(bytes, path)?.0)
    }

    /// Reads the pickle at the start of `bytes`, and says how many of them it takes.
    ///
    /// # Errors
    /// As [`Pickle::parse`].
    pub fn parse_first(bytes: &[u8], path: &Path) -> Result<(Self, usize)> {
        let mut machine = Machine { bytes, at: 0, values: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
        let root = machine.run().map_err(|what| Error::data(path, format!("pickle, byte {}: {what}", machine.at)))?;
        Ok((Self { values: machine.values, root }, machine.at))
    }

    /// The value of the whole.
    pub fn root(&self) -> Id {
        self.root
    }

    /// A value by its number.
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// All values, in the order in which they were built.
    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }

    /// The members of a tuple or list.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// What a dictionary holds under a string.
    pub fn field(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.get(dict) else { return None };
        let entry = entries.iter().rev().find(|(k, _)| matches!(self.get(*k), Value::Text(text) if text == key));
        entry.map(|(_, value)| *value)
    }

    /// Names of all functions and classes in it.
    pub fn globals(&self) -> impl Iterator<Item = &str> {
        self.values.iter().filter_map(|value| match value {
            Value::Global(name) => Some(name.as_str()),
            _ => None,
        })
    }
}

/// What lies on the stack: a value, or the mark before the members of a collection.
#[derive(Clone, Copy)]
enum Slot {
    Value(Id),
    Mark,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Slot>,
    memo: HashMap<usize, Id>,
}

type Step<T> = std::result::Result<T, String>;

impl Machine<'_> {
    /// Instructions as in CPython's Lib/pickletools.py.
    fn run(&mut self) -> Step<Id> {
        loop {
            match self.byte()? {
                0x80 => match self.byte()? {
                    2..=5 => {}
                    version => return Err(format!("protocol {version}; 2 to 5 are read")),
                },
                0x95 => {
                    self.take(8)?; // a frame's length says nothing new
                }
                b'.' => return self.pop(),
                b'(' => self.stack.push(Slot::Mark),
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.members()?;
                }
                b'2' => {
                    let top = self.pop()?;
                    self.stack.extend([Slot::Value(top), Slot::Value(top)]);
                }
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'J' => {
                    let n = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))
                }
                b'K' => {
                    let n = self.byte()?;
                    self.push(Value::Int(n.into()))
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(n.into()))
                }
                0x8A => {
                    let length = self.byte()?.into();
                    let bytes = self.take(length)?;
                    let value = long(bytes).map_or_else(|| Value::Bytes(bytes.to_vec()), Value::Int);
                    self.push(value)
                }
                b'G' => {
                    let x = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(x))
                }
                // `U` and `T` are what Python 2 wrote.
                0x8C | b'U' => self.text(1)?,
                b'X' | b'T' => self.text(4)?,
                0x8D => self.text(8)?,
                b'C' => self.raw_bytes(1)?,
                b'B' => self.raw_bytes(4)?,
                0x8E => self.raw_bytes(8)?,
                b']' | b')' => self.push(Value::List(Vec::new())),
                b'}' => self.push(Value::Dict(Vec::new())),
                b'l' | b't' => {
                    let items = self.members()?;
                    self.push(Value::List(items))
                }
                b'd' => {
                    let items = self.members()?;
                    self.push(Value::Dict(pairs(&items)?))
                }
                count @ 0x85..=0x87 => {
                    let mut items = (0..=usize::from(count - 0x85)).map(|_| self.pop()).collect::<Step<Vec<Id>>>()?;
                    items.reverse();
                    self.push(Value::List(items))
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?
                }
                b'e' => {
                    let items = self.members()?;
                    self.append(items)?
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.insert(vec![(key, value)])?
                }
                b'u' => {
                    let items = self.members()?;
                    self.insert(pairs(&items)?)?
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Value::Global(format!("{module}.{name}")))
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) = (&self.values[module], &self.values[name]) else {
                        return Err("a class whose name is no text".into());
                    };
                    let name = format!("{module}.{name}");
                    self.push(Value::Global(name))
                }
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.call(function, arguments)?
                }
                // The attributes of an object: an OrderedDict's `_metadata`, which says nothing of the weights.
                b'b' => {
                    self.pop()?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id))
                }
                b'q' => {
                    let slot = self.byte()?.into();
                    self.remember(slot)?
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?) as usize;
                    self.remember(slot)?
                }
                0x94 => self.remember(self.memo.len())?,
                b'h' => {
                    let slot = self.byte()?.into();
                    self.recall(slot)?
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?) as usize;
                    self.recall(slot)?
                }
                other => return Err(format!("instruction {other:#04x}, which no weights need")),
            }
        }
    }

    fn take(&mut self, n: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("ends where {n} more bytes should be"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Step<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().take(256).position(|&b| b == b'\n').ok_or("a name without an end")?;
        let line = String::from_utf8_lossy(self.take(n + 1)?).trim_end().to_string();
        Ok(line)
    }

    /// The bytes after a length of `width` bytes.
    fn counted(&mut self, width: usize) -> Step<&[u8]> {
        let mut length = [0; 8];
        length[..width].copy_from_slice(self.take(width)?);
        self.take(usize::try_from(u64::from_le_bytes(length)).map_err(|e| e.to_string())?)
    }

    fn text(&mut self, width: usize) -> Step<()> {
        let bytes = self.counted(width)?.to_vec();
        let text = String::from_utf8(bytes).map_err(|_| "a text that is not UTF-8")?;
        self.push(Value::Text(text));
        Ok(())
    }

    fn raw_bytes(&mut self, width: usize) -> Step<()> {
        let bytes = self.counted(width)?.to_vec();
        self.push(Value::Bytes(bytes));
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Slot::Value(self.values.len()));
        self.values.push(value);
    }

    fn pop(&mut self) -> Step<Id> {
        match self.stack.pop() {
            Some(Slot::Value(id)) => Ok(id),
            _ => Err("takes more than it has".into()),
        }
    }

    /// Everything down to the last mark.
    fn members(&mut self) -> Step<Vec<Id>> {
        let mark = self.stack.iter().rposition(|slot| matches!(slot, Slot::Mark)).ok_or("members without a mark")?;
        let members = self.stack.split_off(mark);
        Ok(members.into_iter().filter_map(|slot| if let Slot::Value(id) = slot { Some(id) } else { None }).collect())
    }

    fn top(&mut self) -> Step<&mut Value> {
        match self.stack.last() {
            Some(Slot::Value(id)) => Ok(&mut self.values[*id]),
            _ => Err("takes more than it has".into()),
        }
    }

    fn append(&mut self, items: Vec<Id>) -> Step<()> {
        match self.top()? {
            Value::List(list) => list.extend(items),
            _ => return Err("adds members to what is no list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, items: Vec<(Id, Id)>) -> Step<()> {
        match self.top()? {
            Value::Dict(entries) => entries.extend(items),
            _ => return Err("adds entries to what is no dictionary".into()),
        }
        Ok(())
    }

    fn call(&mut self, function: Id, arguments: Id) -> Step<()> {
        let Value::Global(name) = &self.values[function] else {
            return Err("calls what is no function".into());
        };
        let Value::List(list) = &self.values[arguments] else {
            return Err(format!("calls {} without arguments", shorten(name)));
        };
        // An empty OrderedDict is filled by later instructions, like any dictionary.
        let value = match name == "collections.OrderedDict" && list.is_empty() {
            true => Value::Dict(Vec::new()),
            false => Value::Call { function, arguments },
        };
        self.push(value);
        Ok(())
    }

    fn remember(&mut self, slot: usize) -> Step<()> {
        let Some(Slot::Value(id)) = self.stack.last() else { return Err("remembers nothing".into()) };
        self.memo.insert(slot, *id);
        Ok(())
    }

    fn recall(&mut self, slot: usize) -> Step<()> {
        let id = *self.memo.get(&slot).ok_or_else(|| format!("recalls number {slot}, which it never remembered"))?;
        self.stack.push(Slot::Value(id));
        Ok(())
    }
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a key without a value".into());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// A little-endian two's-complement number, if 64 bits hold it.
fn long(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.last().is_some_and(|&b| b >= 0x80);
    if bytes.len() > 8 {
        return None;
    }
    let mut all = if negative { [0xFF; 8] } else { [0; 8] };
    all[..bytes.len()].copy_from_slice(bytes);
    Some(i64::from_le_bytes(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Pickle> {
        Pickle::parse(bytes, Path::new("x.pkl"))
    }

    #[test]
    fn python_values_are_read() {
        // pickle.dumps({"a": [1, -2, 300, 70000, 2**40], "b": (1.5, None, True, "é")}, protocol=2)
        let bytes = b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffM,\x01Jp\x11\x01\x00\x8a\x06\x00\x00\x00\x00\x00\x01eX\x01\x00\x00\x00bq\x03(G?\xf8\x00\x00\x00\x00\x00\x00N\x88X\x02\x00\x00\x00\xc3\xa9q\x04tq\x05u.";
        let pickle = parse(bytes).unwrap();
        let list = |key: &str| match pickle.get(pickle.field(pickle.root(), key).unwrap()) {
            Value::List(ids) => ids.iter().map(|&id| pickle.get(id).clone()).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(list("a"), [1, -2, 300, 70000, 1 << 40].map(Value::Int));
        assert_eq!(list("b"), [Value::Float(1.5), Value::None, Value::Bool(true), Value::Text("é".into())]);
    }

    #[test]
    fn calls_are_described_and_never_made() {
        let pickle = parse(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.").unwrap();
        assert!(matches!(pickle.get(pickle.root()), Value::Call { .. }));
        assert_eq!(pickle.globals().collect::<Vec<_>>(), ["posix.system"]);
    }

    #[test]
    fn depth_and_doubling_cost_no_more_than_the_file() {
        let mut nested = b"\x80\x02)".to_vec();
        nested.extend(std::iter::repeat_n(0x85, 2_000_000));
        nested.push(b'.');
        assert_eq!(parse(&nested).unwrap().values.len(), 2_000_001);
        // Twenty-eight times a pair of what is remembered: 2²⁸ values for a reader that copies.
        let mut bomb = b"\x80\x02)q\x00".to_vec();
        for i in 0..28 {
            bomb.extend([b'h', i, b'h', i, 0x86, b'q', i + 1]);
        }
        bomb.push(b'.');
        assert!(parse(&bomb).unwrap().values.len() < 64);
    }

    #[test]
    fn damage_is_an_error() {
        for bytes in [
            &b""[..],
            b"\x80\x09.",
            b"\x80\x02.",
            b"\x80\x02\x85.",
            b"\x80\x02X\xff\xff\xff\xffa.",
            b"\x80\x02h\x07.",
            b"\x80\x02K\x01s.",
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
