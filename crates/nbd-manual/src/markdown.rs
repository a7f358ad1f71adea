//! A page of `docs/` to a man page.

use std::mem;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// A man page called `NAME.SECTION` of Markdown.
pub(crate) fn page(file: &str, title: &str, markdown: &str) -> String {
    let (name, section) = file.rsplit_once('.').unwrap_or((file, "7"));
    let mut page = Page::default();
    // The first line tells programs that look for it to lay tables out.
    page.line("'\\\" t");
    page.line(&format!(".TH {} {section} \"\" \"nbd-ctl\"", escape(&name.to_uppercase())));
    page.line(".SH NAME");
    page.line(&format!("{} \\- {}", escape(name), escape(title)));
    page.line(".SH DESCRIPTION");
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        page.take(event);
    }
    page.out
}

/// What has been written, and what is being written.
#[derive(Debug, Default)]
struct Page {
    out: String,
    /// The present paragraph, heading, item or cell.
    text: String,
    /// In a heading, whose text does not belong to a paragraph.
    title: bool,
    in_code: bool,
    lists: Vec<Option<u64>>,
    /// An item has begun whose mark stands in front of its first paragraph.
    mark: Option<String>,
    link: Option<String>,
    /// The rows of the table, and the cells of its present row.
    rows: Vec<Vec<String>>,
    row: Vec<String>,
    in_table: bool,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// A new paragraph, which a heading has begun already.
    fn gap(&mut self) {
        let last = self.out.lines().next_back().unwrap_or_default();
        if !last.starts_with(".S") {
            self.line(".PP");
        }
    }

    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.in_code => {
                for line in text.lines() {
                    self.line(&at_line_start(&escape(line)));
                }
            }
            Event::Text(text) => self.text.push_str(&escape(&text)),
            Event::Code(code) => {
                let code = escape(&code);
                let code = if self.in_table { breakable(&code) } else { code };
                self.text.push_str(&format!("\\fB{code}\\fR"));
            }
            Event::SoftBreak => self.text.push(' '),
            Event::HardBreak => self.text.push_str("\n.br\n"),
            Event::Rule => self.paragraph(),
            // Pages have no HTML but line breaks in drawings, which are left out.
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::Heading { .. } => {
                self.paragraph();
                self.title = true;
            }
            Tag::CodeBlock(_) => {
                self.paragraph();
                self.in_code = true;
                self.gap();
                self.line(".RS 4");
                self.line(".nf");
            }
            Tag::List(first) => {
                self.paragraph();
                if !self.lists.is_empty() {
                    self.line(".RS 4");
                }
                self.lists.push(first);
            }
            Tag::Item => {
                let mark = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        let mark = format!("{number}.");
                        *number += 1;
                        mark
                    }
                    _ => "\\(bu".into(),
                };
                self.mark = Some(mark);
            }
            Tag::Emphasis => self.text.push_str("\\fI"),
            Tag::Strong => self.text.push_str("\\fB"),
            Tag::Link { dest_url, .. } => self.link = Some(dest_url.into_string()),
            Tag::Table(_) => {
                self.paragraph();
                self.in_table = true;
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) => self.heading(level),
            TagEnd::Paragraph | TagEnd::Item => self.paragraph(),
            TagEnd::CodeBlock => {
                self.in_code = false;
                self.line(".fi");
                self.line(".RE");
            }
            TagEnd::List(_) => {
                self.lists.pop();
                if !self.lists.is_empty() {
                    self.line(".RE");
                }
            }
            TagEnd::Emphasis | TagEnd::Strong => self.text.push_str("\\fR"),
            TagEnd::Link => {
                if let Some(url) = self.link.take().filter(|url| url.starts_with("http")) {
                    self.text.push_str(&format!(" ({})", escape(&url)));
                }
            }
            TagEnd::TableCell => {
                let cell = mem::take(&mut self.text);
                self.row.push(cell.trim().to_owned());
            }
            TagEnd::TableHead | TagEnd::TableRow => {
                let row = mem::take(&mut self.row);
                self.rows.push(row);
            }
            TagEnd::Table => self.table(),
            _ => {}
        }
    }

    fn heading(&mut self, level: HeadingLevel) {
        self.title = false;
        let text = mem::take(&mut self.text);
        match level {
            // The page has its name already.
            HeadingLevel::H1 => {}
            HeadingLevel::H2 => self.line(&format!(".SH \"{}\"", capitals(&text))),
            _ => self.line(&format!(".SS \"{text}\"")),
        }
    }

    fn paragraph(&mut self) {
        if self.title || self.in_table {
            return;
        }
        let text = mem::take(&mut self.text);
        // What links within the page says nothing on paper.
        if text.trim().is_empty() || text.starts_with("Contents:") {
            return;
        }
        match self.mark.take() {
            Some(mark) => self.line(&format!(".IP {mark} 4")),
            None if self.lists.is_empty() => self.gap(),
            None => self.line(".IP"),
        }
        self.line(&at_line_start(text.trim()));
    }

    fn table(&mut self) {
        self.in_table = false;
        let rows = mem::take(&mut self.rows);
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        if columns == 0 {
            return;
        }
        self.gap();
        // Narrow cells filled to both margins are mostly blanks.
        self.line(".na");
        self.line(".TS");
        self.line("allbox;");
        let narrow: Vec<bool> = (0..columns)
            .map(|column| rows.iter().filter_map(|row| row.get(column)).all(|it| is_short(it)))
            .collect();
        let formats = narrow.iter().map(|narrow| if *narrow { "l" } else { "lx" });
        let formats = formats.collect::<Vec<_>>().join(" ");
        self.line(&format!("{formats}."));
        for row in rows {
            let cells = row.iter().zip(&narrow).map(|(cell, narrow)| match narrow {
                true => cell.clone(),
                false => format!("T{{\n{}\nT}}", at_line_start(cell)),
            });
            self.line(&cells.collect::<Vec<_>>().join("\t"));
        }
        self.line(".TE");
        self.line(".ad");
    }
}

/// Sections are headed in capitals, but what has code or signs in it stays as it is.
fn capitals(text: &str) -> String {
    if text.contains('\\') { text.to_owned() } else { text.to_uppercase() }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '`' => escaped.push_str("\\(ga"),
            '"' => escaped.push_str("\\(dq"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Whether a cell need not be broken into lines.
fn is_short(cell: &str) -> bool {
    cell.replace("\\fB", "").replace("\\fR", "").replace("\\:", "").chars().count() <= 16
}

/// Long names need a place to be broken at in a narrow cell.
fn breakable(escaped: &str) -> String {
    escaped.replace('_', "_\\:").replace('/', "/\\:").replace("::", "::\\:")
}

/// A line that begins with a full stop would be a command.
fn at_line_start(line: &str) -> String {
    if line.starts_with('.') { format!("\\&{line}") } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(markdown: &str) -> String {
        let page = page("x.7", "a title", markdown);
        let (_, body) = page.split_once(".SH DESCRIPTION\n").unwrap();
        body.to_owned()
    }

    #[test]
    fn paragraphs_lists_and_code() {
        assert_eq!(
            body("# Title\n\na *b* `c-d`\ne\n\n1. one\n2. two\n\n```\n.x \\\n```\n"),
            "a \\fIb\\fR \\fBc\\-d\\fR e\n.IP 1. 4\none\n.IP 2. 4\ntwo\n\
             .PP\n.RS 4\n.nf\n\\&.x \\e\n.fi\n.RE\n"
        );
    }

    #[test]
    fn a_table_has_its_cells() {
        let text =
            body("## Some words\n\n| a | b |\n|---|---|\n| `x` | longer than it is wide |\n");
        assert!(text.starts_with(".SH \"SOME WORDS\"\n.na\n.TS\n"), "{text}");
        assert!(
            text.contains("l lx.\na\tT{\nb\nT}\n\\fBx\\fR\tT{\nlonger than it is wide\nT}\n.TE\n")
        );
    }

    #[test]
    fn links_keep_their_text_and_foreign_ones_their_address() {
        let text = body("[here](#there) and [there](https://example.org/a)\n");
        assert_eq!(text, "here and there (https://example.org/a)\n");
    }
}
