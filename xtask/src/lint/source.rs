//! What does a Rust file name, and which texts does it hold, apart from comments and test code?
//!
//! It reads tokens, not syntax: paths as they are written, also those in macros. What a macro of another crate makes is not seen.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// What a file names and says.
#[derive(Debug, Default)]
pub struct Source {
    /// In the order in which they are written.
    pub paths: Vec<Named>,
    /// String literals as they are written, quotes and all, with their lines.
    pub texts: Vec<(usize, String)>,
}

/// A path, e.g. `crate::net::Ttl`; each leaf of a `use` tree is one.
#[derive(Debug, PartialEq, Eq)]
pub struct Named {
    pub line: usize,
    /// Never empty.
    pub path: Vec<String>,
    /// Modules of the file, not files themselves, in which it is written.
    pub within: Vec<String>,
    /// Is it called?
    pub called: bool,
    /// Is it imported? A single name is a crate then, or a module.
    pub used: bool,
}

/// Reads a file's text.
pub fn read(text: &str) -> Result<Source> {
    let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{error}"))?;
    let mut source = Source::default();
    source.walk(tokens, &[]);
    Ok(source)
}

impl Source {
    fn walk(&mut self, tokens: TokenStream, within: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    at = self.attribute(&tokens, at, within);
                    continue;
                }
                // A lifetime's name follows.
                TokenTree::Punct(punct) if punct.as_char() == '\'' && punct.spacing() == Spacing::Joint => at += 1,
                TokenTree::Ident(ident) => {
                    let module = ident == "mod" && is_group(tokens.get(at + 2), Delimiter::Brace);
                    if let (true, Some(name), Some(TokenTree::Group(body))) =
                        (module, tokens.get(at + 1), tokens.get(at + 2))
                    {
                        let within: Vec<_> = within.iter().cloned().chain([name.to_string()]).collect();
                        self.walk(body.stream(), &within);
                        at += 3;
                    } else {
                        let used = ident == "use";
                        let rest = if used { &tokens[at + 1..] } else { &tokens[at..] };
                        let length = self.tree(rest, &mut Vec::new(), within, used);
                        at += length + usize::from(used);
                    }
                    continue;
                }
                TokenTree::Group(group) => self.walk(group.stream(), within),
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    if text.contains('"') && !text.starts_with(['\'', 'b']) {
                        self.texts.push((literal.span().start().line, text));
                    }
                }
                TokenTree::Punct(_) => {}
            }
            at += 1;
        }
    }

    /// Reads an attribute, and passes over what it marks as test code; gives the place behind.
    fn attribute(&mut self, tokens: &[TokenTree], at: usize, within: &[String]) -> usize {
        let inner = matches!(tokens.get(at + 1), Some(TokenTree::Punct(punct)) if punct.as_char() == '!');
        let at = at + 1 + usize::from(inner);
        let Some(TokenTree::Group(group)) = tokens.get(at) else { return at };
        let text = group.stream().to_string();
        if text.replace(' ', "") == "cfg(test)" {
            let ends = |token: &TokenTree| {
                is_group(Some(token), Delimiter::Brace)
                    || matches!(token, TokenTree::Punct(punct) if punct.as_char() == ';')
            };
            let length = tokens[at + 1..].iter().position(ends).map_or(tokens.len(), |length| length + 1);
            return (at + 1 + length).min(tokens.len());
        }
        if !text.starts_with("doc ") {
            self.walk(group.stream(), within);
        }
        at + 1
    }

    /// Reads a path or a `use` tree; gives its number of tokens, one at least.
    fn tree(&mut self, tokens: &[TokenTree], base: &mut Vec<String>, within: &[String], used: bool) -> usize {
        let mut at = 0;
        let depth = base.len();
        let mut line = 0;
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(ident)) => {
                    line = ident.span().start().line;
                    base.push(ident.to_string());
                    at += 1;
                }
                Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace && (used || at > 0) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    for leaf in inner.split(|token| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ','))
                    {
                        if !leaf.is_empty() {
                            self.tree(leaf, base, within, used);
                        }
                    }
                    base.truncate(depth);
                    return at + 1;
                }
                // `*`, `<` and whatever else ends a path.
                _ => break,
            }
            if !is_separator(&tokens[at..]) {
                break;
            }
            at += 2;
        }
        let called = is_group(tokens.get(at), Delimiter::Parenthesis);
        let path: Vec<String> = base.iter().filter(|name| *name != "self" || base[0] == **name).cloned().collect();
        if !path.is_empty() {
            self.paths.push(Named { line, path, within: within.to_vec(), called, used });
        }
        base.truncate(depth);
        at.max(1)
    }
}

fn is_group(token: Option<&TokenTree>, delimiter: Delimiter) -> bool {
    matches!(token, Some(TokenTree::Group(group)) if group.delimiter() == delimiter)
}

fn is_separator(tokens: &[TokenTree]) -> bool {
    let colon = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ':');
    let joint = matches!(tokens.first(), Some(TokenTree::Punct(punct)) if punct.spacing() == Spacing::Joint);
    joint && tokens.len() > 1 && tokens[..2].iter().all(colon)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let source = read(text).unwrap();
        source.paths.into_iter().filter(|named| named.path.len() > 1).map(|named| named.path.join("::")).collect()
    }

    #[test]
    fn a_use_tree_stands_for_its_paths() {
        let text = "use crate::{net::{self, Ttl as T}, report, output::*};\nuse {a::b, c::d};\nuse self::x;";
        assert_eq!(
            paths(text),
            ["crate::net", "crate::net::Ttl", "crate::report", "crate::output", "a::b", "c::d", "self::x"]
        );
    }

    #[test]
    fn comments_texts_and_test_code_name_nothing() {
        let text = "//! a::b\n/// a::b\nfn f<'a>() -> &'a str { \"a::b\" /* a::b */ }\n\
                    #[cfg(test)]\n#[allow(x)]\nmod tests { use a::b; }\n#[cfg(test)] use a::b;\nfn g() { c::d() }";
        assert_eq!(paths(text), ["c::d"]);
        assert_eq!(read(text).unwrap().texts, [(3, "\"a::b\"".to_owned())]);
    }

    #[test]
    fn macros_generics_and_modules_inside_are_read() {
        let text = "fn f() { println!(\"{}\", a::b(c)); d::<e::F>::g(); }\nmod x { use super::super::y; }";
        assert_eq!(paths(text), ["a::b", "e::F", "super::super::y"]);
        let source = read(text).unwrap();
        assert_eq!(
            source.paths.last().map(|named| (named.line, named.within.clone())),
            Some((2, vec!["x".to_owned()]))
        );
        assert!(source.paths.iter().any(|named| named.called && named.path == ["a", "b"]));
    }
}
